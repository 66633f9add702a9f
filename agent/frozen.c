/* The frozen modules of the agent's interpreter: the few of CPython's that it starts with, and the
   packages our own compiled modules live in. FROZEN is what freeze.py writes.

   Takes the place of CPython's frozen.c and deepfreeze.c: the latter holds 0.9 MB of code objects
   for modules nobody imports here, and touches all of it at start, in every guest. */
#include <Python.h>
#include FROZEN

struct _module_alias {
    const char *name;
    const char *orig;
};

static const struct _frozen no_modules[] = {{0}};
static const struct _module_alias no_aliases[] = {{0}};

const struct _frozen *PyImport_FrozenModules = no_modules;
const struct _frozen *_PyImport_FrozenBootstrap = frozen_modules;
const struct _frozen *_PyImport_FrozenStdlib = no_modules;
const struct _frozen *_PyImport_FrozenTest = no_modules;
const struct _module_alias *_PyImport_FrozenAliases = no_aliases;

int _Py_Deepfreeze_Init(void) { return 0; }
void _Py_Deepfreeze_Fini(void) {}
