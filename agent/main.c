/* Starts CPython with nothing but what is linked in, then runs agent.main.main().

   No path search, no site, no locale: all modules are built in (inittab.c) or frozen (frozen.c).
   Private to the agent; PID 1's end panics the guest, which is what ends the VM
   when the agent cannot run. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

/* A kernel with everything built in starts us without the initrd, and then maybe without /dev. */
static void open_console(void)
{
    if (access("/dev/null", F_OK) != 0)
        mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    if (fcntl(2, F_GETFD) >= 0)
        return;
    int fd = open("/dev/console", O_RDWR);
    if (fd < 0)
        return;
    for (int target = 0; target <= 2; target++)
        if (fd != target)
            dup2(fd, target);
    if (fd > 2)
        close(fd);
}

static void fail(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void set_string(PyConfig *config, wchar_t **field, const wchar_t *text)
{
    fail(PyConfig_SetString(config, field, text));
}

int main(void)
{
    open_console();
    signal(SIGPIPE, SIG_IGN);

    PyPreConfig pre;
    PyPreConfig_InitIsolatedConfig(&pre);
    pre.utf8_mode = 1;
    pre.configure_locale = 0;
    fail(Py_PreInitialize(&pre));

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.install_signal_handlers = 0;
    config.buffered_stdio = 0;
    config.use_hash_seed = 0;
    config.pathconfig_warnings = 0;
    config.optimization_level = 2;
    config.module_search_paths_set = 1;
    wchar_t **const paths[] = {
        &config.program_name, &config.executable, &config.base_executable,
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        set_string(&config, paths[i], L"/init");
    wchar_t **const prefixes[] = {
        &config.home, &config.prefix, &config.exec_prefix,
        &config.base_prefix, &config.base_exec_prefix, &config.stdlib_dir,
    };
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        set_string(&config, prefixes[i], L"/");
    set_string(&config, &config.platlibdir, L"lib");
    set_string(&config, &config.filesystem_encoding, L"utf-8");
    set_string(&config, &config.filesystem_errors, L"surrogateescape");
    set_string(&config, &config.stdio_encoding, L"utf-8");
    set_string(&config, &config.stdio_errors, L"strict");
    fail(Py_InitializeFromConfig(&config));

    PyObject *module = PyImport_ImportModule("agent.main");
    PyObject *result = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
    if (result == NULL)
        PyErr_Print();
    return 1;
}
