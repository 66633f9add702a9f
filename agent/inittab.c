/* The built-in modules of the agent's interpreter: what it needs of CPython's, and its own.

   Takes the place of CPython's config.c, so that the linker leaves the rest out. AGENT_MODULES is
   the list of the agent's compiled modules, which build.py writes. */
#include <Python.h>
#include AGENT_MODULES

#define CPYTHON_MODULES(M) \
    M("_abc", PyInit__abc) \
    M("_codecs", PyInit__codecs) \
    M("_collections", PyInit__collections) \
    M("_functools", PyInit__functools) \
    M("_imp", PyInit__imp) \
    M("_io", PyInit__io) \
    M("_operator", PyInit__operator) \
    M("_signal", PyInit__signal) \
    M("_socket", PyInit__socket) \
    M("_stat", PyInit__stat) \
    M("_string", PyInit__string) \
    M("_struct", PyInit__struct) \
    M("_thread", PyInit__thread) \
    M("_warnings", _PyWarnings_Init) \
    M("_weakref", PyInit__weakref) \
    M("atexit", PyInit_atexit) \
    M("errno", PyInit_errno) \
    M("fcntl", PyInit_fcntl) \
    M("gc", PyInit_gc) \
    M("itertools", PyInit_itertools) \
    M("marshal", PyMarshal_Init) \
    M("posix", PyInit_posix) \
    M("select", PyInit_select) \
    M("time", PyInit_time)

#define DECLARE(name, function) extern PyObject *function(void);
CPYTHON_MODULES(DECLARE)
OWN_MODULES(DECLARE)

#define ROW(name, function) {name, function},
struct _inittab _PyImport_Inittab[] = {
    CPYTHON_MODULES(ROW)
    OWN_MODULES(ROW)
    {"builtins", NULL},
    {"sys", NULL},
    {NULL, NULL},
};
