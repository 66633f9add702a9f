/* The one binary: what `hypercore` and `containerd-shim-hypercore-*` start as.
 *
 * As a CLI it only finds its Python and becomes it. As a shim it answers `start` itself, because
 * containerd waits for it at every container: it registers the container with the shim server,
 * which it starts by socket activation if there is none, and prints the server's address. It also
 * answers `-info`, and the `delete` that containerd runs after every ordinary end of a task; for
 * one that did not end so it becomes Python, without asyncio.
 *
 * `start` prints its answer and nothing else: containerd reads stdout and stderr as one text.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "launcher_info.h"
#include "launcher_wire.h"

#ifndef HYPERCORE_VERSION
#define HYPERCORE_VERSION "unknown"
#endif
#ifndef HYPERCORE_PYTHON
#define HYPERCORE_PYTHON "" /* interpreter of an installation without .venv beside bin */
#endif

#define SHIM_PREFIX "containerd-shim-"
#define MAX_STDIN (1 << 20)
#define MAX_SHARDS 4096
#define REGISTER_TIMEOUT_S 10
#define DELETED "deleted" /* in the bundle: what the server answered to Delete (shim/records.py) */
#define RESOURCE_EXHAUSTED 8 /* google.rpc.Code: this server has all the VMs it takes */

extern char **environ;

struct options {
    const char *namespace, *id, *address, *bundle, *action;
    bool debug, info, version;
};

struct server { /* paths of one shim server; unix socket paths end at 107 bytes */
    char directory[108], socket[108], stdio[108], lock[PATH_MAX], log[PATH_MAX];
};

static _Noreturn void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("hypercore: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static const char *environment(const char *name, const char *fallback)
{
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

/* --- the interpreter ------------------------------------------------------------------------- */

static char exe[PATH_MAX];          /* this binary, links resolved */
static char python[PATH_MAX];       /* the interpreter, link not resolved: it shows the venv */

static bool executable(const char *path)
{
    return access(path, X_OK) == 0;
}

static void find_python(void)
{
    ssize_t size = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (size < 0)
        fail("cannot read /proc/self/exe: %s", strerror(errno));
    exe[size] = 0;
    char directory[PATH_MAX];
    strcpy(directory, exe);
    *strrchr(directory, '/') = 0;

    if (snprintf(python, sizeof python, "%s/../.venv/bin/python", directory) < PATH_MAX &&
        executable(python))
        return;
    char record[PATH_MAX + 8];
    snprintf(record, sizeof record, "%s.python", exe);
    FILE *file = fopen(record, "re");
    if (file) {
        char *line = fgets(python, sizeof python, file);
        fclose(file);
        if (line) {
            line[strcspn(line, "\n")] = 0;
            if (executable(line))
                return;
            fail("%s names %s, which cannot be executed", record, line);
        }
    }
    if (snprintf(python, sizeof python, "%s/python3", directory) < PATH_MAX && executable(python))
        return;
    snprintf(python, sizeof python, "%s", HYPERCORE_PYTHON);
    if (executable(python))
        return;
    fail("no Python found: neither %s/../.venv/bin/python nor a path in %s; run `make build`",
         directory, record);
}

static _Noreturn void become(char **argv)
{
    execv(python, argv);
    fail("cannot execute %s: %s", python, strerror(errno));
}

/* Run a module's main with this program's arguments. */
static _Noreturn void become_module(const char *module, int argc, char **argv)
{
    char **command = calloc(argc + 5, sizeof *command);
    int n = 0;
    command[n++] = python;
    command[n++] = "-I";
    command[n++] = "-m";
    command[n++] = (char *)module;
    for (int i = 1; i < argc; i++)
        command[n++] = argv[i];
    become(command);
}

/* The same for a file of hypercore/shim/, without site: half the start-up time. Its place is
 * recorded beside the interpreter's by the build, or follows from bin/ of a clone. */
static _Noreturn void become_script(const char *name, int argc, char **argv)
{
    char script[2 * PATH_MAX], record[PATH_MAX + 8], package[PATH_MAX];
    char directory[PATH_MAX];
    strcpy(directory, exe);
    *strrchr(directory, '/') = 0;
    snprintf(script, sizeof script, "%s/../hypercore/shim/%s.py", directory, name);
    if (access(script, R_OK) != 0) {
        snprintf(record, sizeof record, "%s.package", exe);
        FILE *file = fopen(record, "re");
        char *line = file ? fgets(package, sizeof package, file) : NULL;
        if (file)
            fclose(file);
        if (line) {
            line[strcspn(line, "\n")] = 0;
            snprintf(script, sizeof script, "%s/shim/%s.py", line, name);
        }
    }
    if (access(script, R_OK) != 0) {
        char module[64];
        snprintf(module, sizeof module, "hypercore.shim.%s", name);
        become_module(module, argc, argv);
    }
    char **command = calloc(argc + 6, sizeof *command);
    int n = 0;
    command[n++] = python;
    command[n++] = "-I";
    command[n++] = "-S";
    command[n++] = "-E";
    command[n++] = script;
    for (int i = 1; i < argc; i++)
        command[n++] = argv[i];
    become(command);
}

/* --- arguments ------------------------------------------------------------------------------- */

/* Go's flag syntax: -name value, -name=value, one dash or two. */
static struct options parse(int argc, char **argv)
{
    struct options o = {"", "", "", "", "", false, false, false};
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (arg[0] != '-') {
            o.action = arg;
            continue;
        }
        arg += arg[1] == '-' ? 2 : 1;
        size_t length = strcspn(arg, "=");
        const char *value = arg[length] == '=' ? arg + length + 1 : NULL;
        struct {
            const char *name;
            const char **text;
            bool *flag;
        } known[] = {
            {"namespace", &o.namespace, NULL}, {"id", &o.id, NULL},
            {"address", &o.address, NULL},     {"bundle", &o.bundle, NULL},
            {"debug", NULL, &o.debug},         {"info", NULL, &o.info},
            {"v", NULL, &o.version},           {"version", NULL, &o.version},
        };
        bool found = false;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            if (strlen(known[k].name) != length || strncmp(known[k].name, arg, length) != 0)
                continue;
            found = true;
            if (known[k].flag)
                *known[k].flag = !value || strcmp(value, "false") != 0;
            else
                *known[k].text = value ? value : i + 1 < argc ? argv[++i] : "";
        }
        /* publish-binary, socket, and what a later containerd adds: each has a value. */
        if (!found && !value)
            i++;
    }
    return o;
}

static size_t read_stdin(uint8_t *buffer, size_t limit)
{
    size_t size = 0;
    while (size < limit) {
        ssize_t n = read(0, buffer + size, limit - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        size += n;
    }
    return size;
}

/* --- the server ------------------------------------------------------------------------------ */

static uint64_t fnv(uint64_t hash, const void *data, size_t size)
{
    for (const uint8_t *p = data; size--; p++)
        hash = (hash ^ *p) * 1099511628211u;
    return hash;
}

/* A server is for one containerd, one namespace (containerd 1.7 names none in its calls), one
 * build of us and one shard. */
static struct server server_paths(const struct options *o, int shard)
{
    struct stat self;
    if (stat(exe, &self) != 0)
        fail("cannot stat %s: %s", exe, strerror(errno));
    const char *data = environment("HYPERCORE_DATA_DIR", "");
    const char *config = environment("HYPERCORE_CONFIG", "");
    uint64_t build[] = {self.st_dev, self.st_ino, self.st_mtim.tv_sec, self.st_mtim.tv_nsec};
    uint64_t hash = 14695981039346656037u;
    hash = fnv(hash, o->address, strlen(o->address) + 1);
    hash = fnv(hash, o->namespace, strlen(o->namespace) + 1);
    hash = fnv(hash, data, strlen(data) + 1);
    hash = fnv(hash, config, strlen(config) + 1);
    hash = fnv(hash, build, sizeof build);
    hash = fnv(hash, &shard, sizeof shard);

    struct server s;
    const char *run = environment("HYPERCORE_RUN_DIR", "/run/hypercore");
    unsigned long long name = hash;
    if (snprintf(s.socket, sizeof s.socket, "%s/shim/%016llx.sock", run, name) >= 108 ||
        snprintf(s.stdio, sizeof s.stdio, "%s/shim/%016llx.io", run, name) >= 108)
        fail("the run directory %s is too long for a unix socket; set HYPERCORE_RUN_DIR", run);
    snprintf(s.directory, sizeof s.directory, "%s/shim", run);
    snprintf(s.lock, sizeof s.lock, "%s/shim/%016llx.lock", run, name);
    snprintf(s.log, sizeof s.log, "%s/shim/%016llx.log", run, name);
    return s;
}

static void make_directories(const char *path)
{
    char partial[108];
    strcpy(partial, path);
    for (char *slash = partial + 1;; *slash++ = '/') {
        slash = strchr(slash, '/');
        if (slash)
            *slash = 0;
        if (mkdir(partial, 0700) != 0 && errno != EEXIST)
            fail("cannot create %s: %s", partial, strerror(errno));
        if (!slash)
            return;
    }
}

static struct sockaddr_un socket_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    return address;
}

static int listen_on(const char *path, int type)
{
    struct sockaddr_un address = socket_address(path);
    if (unlink(path) != 0 && errno != ENOENT)
        fail("cannot remove %s: %s", path, strerror(errno));
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        chmod(path, 0600) != 0 || listen(fd, 4096) != 0)
        fail("cannot listen on %s: %s", path, strerror(errno));
    return fd;
}

/* Connected socket, or -1 when no server listens there. */
static int connect_to(const char *path)
{
    struct sockaddr_un address = socket_address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("cannot create a socket: %s", strerror(errno));
    struct timeval timeout = {.tv_sec = REGISTER_TIMEOUT_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    if (errno != ENOENT && errno != ECONNREFUSED)
        fail("cannot connect to %s: %s", path, strerror(errno));
    close(fd);
    return -1;
}

static bool send_registration(int fd, const char *id)
{
    uint8_t frame[1024];
    if (strlen(id) > MAX_ID)
        fail("the id is longer than %d bytes", MAX_ID);
    size_t size = registration(frame, id);
    return send(fd, frame, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool receive(int fd, uint8_t *buffer, size_t size)
{
    while (size) {
        ssize_t n = recv(fd, buffer, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            fail("the shim server did not answer within %d s", REGISTER_TIMEOUT_S);
        if (n <= 0)
            return false;
        buffer += n;
        size -= n;
    }
    return true;
}

enum outcome { REGISTERED, FULL, GONE };

/* Register with the server behind `fd`. GONE: it ended meanwhile, as an idle one may. */
static enum outcome registered(int fd, const char *id)
{
    uint8_t header[10], body[8192];
    if (!send_registration(fd, id) || !receive(fd, header, sizeof header))
        return GONE;
    size_t size = (size_t)header[0] << 24 | header[1] << 16 | header[2] << 8 | header[3];
    if (size == 0)
        return REGISTERED;
    if (size > sizeof body || !receive(fd, body, size))
        return GONE;
    uint64_t code;
    const char *text;
    int length;
    if (!read_status(body, size, &code, &text, &length))
        fail("malformed answer of the shim server");
    if (code == RESOURCE_EXHAUSTED)
        return FULL;
    fail("the shim server refused %s: code %d: %.*s", id, (int)code, length, text);
}

/* What the server keeps of containerd's environment. */
static char **server_environment(const char *ttrpc, bool debug)
{
    size_t count = 0;
    while (environ[count])
        count++;
    char **kept = calloc(count + 4, sizeof *kept);
    size_t n = 0;
    bool path = false;
    for (size_t i = 0; i < count; i++) {
        bool is_path = strncmp(environ[i], "PATH=", 5) == 0;
        path |= is_path;
        if (is_path || strncmp(environ[i], "HYPERCORE_", 10) == 0)
            kept[n++] = environ[i];
    }
    if (!path)
        kept[n++] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    if (debug)
        kept[n++] = "HYPERCORE_SHIM_DEBUG=1";
    if (*ttrpc && asprintf(&kept[n], "TTRPC_ADDRESS=%s", ttrpc) > 0)
        n++;
    return kept;
}

static void start_server(const struct server *s, const struct options *o, const char *ttrpc)
{
    int listener = listen_on(s->socket, SOCK_STREAM);
    int stdio = listen_on(s->stdio, SOCK_SEQPACKET);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int log = open(s->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (null < 0 || log < 0)
        fail("cannot open %s: %s", log < 0 ? s->log : "/dev/null", strerror(errno));
    char *argv[] = {python, "-I", "-m", "hypercore.shim.server", "--namespace",
                    (char *)o->namespace, "--address", (char *)o->address, "--lock",
                    (char *)s->lock, NULL};
    char **envp = server_environment(ttrpc, o->debug);

    /* exec's errno comes back through a pipe that exec itself closes. */
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0)
        fail("cannot create a pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0)
        fail("cannot start the shim server: %s", strerror(errno));
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        signal(SIGPIPE, SIG_DFL);
        setsid();
        umask(0077);
        /* Moved up first: a source may be one of the targets. */
        int sources[] = {null, log, log, listener, stdio};
        int moved[5], failed = chdir("/") != 0;
        int tell = fcntl(report[1], F_DUPFD_CLOEXEC, 64);
        for (int i = 0; i < 5; i++)
            failed |= (moved[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, 16)) < 0;
        for (int i = 0; i < 5; i++)
            failed |= dup2(moved[i], i) < 0;
        syscall(SYS_close_range, 5u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
        if (!failed)
            execve(python, argv, envp);
        int error = errno;
        if (write(tell, &error, sizeof error) < 0)
            _exit(126);
        _exit(127);
    }
    close(report[1]);
    int error;
    ssize_t size;
    while ((size = read(report[0], &error, sizeof error)) < 0 && errno == EINTR)
        ;
    if (size > 0)
        fail("cannot execute %s: %s", python, strerror(error));
    close(report[0]);
    close(listener);
    close(stdio);
    close(null);
    close(log);
}

/* Register with a running server, or start one; false when it is full. */
static bool use_server(const struct server *s, const struct options *o, const char *ttrpc)
{
    int fd = connect_to(s->socket);
    if (fd >= 0) {
        enum outcome outcome = registered(fd, o->id);
        close(fd);
        if (outcome != GONE)
            return outcome == REGISTERED;
    }
    make_directories(s->directory);
    /* Held by whoever starts a server and by a server that is about to exit. */
    int lock = open(s->lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0)
        fail("cannot open %s: %s", s->lock, strerror(errno));
    while (flock(lock, LOCK_EX) != 0)
        if (errno != EINTR)
            fail("cannot lock %s: %s", s->lock, strerror(errno));
    fd = connect_to(s->socket);
    enum outcome outcome = GONE;
    if (fd >= 0) {
        outcome = registered(fd, o->id);
        close(fd);
    }
    if (outcome == GONE) {
        start_server(s, o, ttrpc);
        /* Its answer is not awaited: a new server is not idle, and reads this first. */
        fd = connect_to(s->socket);
        if (fd < 0 || !send_registration(fd, o->id))
            fail("the shim server ended at once; see %s", s->log);
        close(fd);
        outcome = REGISTERED;
    }
    close(lock);
    return outcome == REGISTERED;
}

/* containerd 1.7 reads the address from this file when it restarts, the others from their own. */
static void write_address(const char *answer)
{
    int fd = open(".address", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    size_t size = strlen(answer);
    if (fd < 0 || write(fd, answer, size) != (ssize_t)size || close(fd) != 0 ||
        rename(".address", "address") != 0)
        fail("cannot write the address file into the bundle: %s", strerror(errno));
}

static int start(const struct options *o)
{
    if (!*o->id || !*o->namespace)
        fail("start: -id and -namespace are needed");
    static uint8_t input[MAX_STDIN];
    char ttrpc[512];
    size_t size = read_stdin(input, sizeof input);
    bool bootstrap =
        size && is_bootstrap(input, size, o->id, o->namespace, ttrpc, sizeof ttrpc);
    if (!bootstrap || !*ttrpc)
        snprintf(ttrpc, sizeof ttrpc, "%s", environment("TTRPC_ADDRESS", ""));

    struct server server;
    int shard = 0;
    do {
        if (shard == MAX_SHARDS)
            fail("all %d shim servers are full; raise [shim] vms_per_server", MAX_SHARDS);
        server = server_paths(o, shard++);
    } while (!use_server(&server, o, ttrpc));

    char address[128], answer[512];
    snprintf(address, sizeof address, "unix://%s", server.socket);
    if (bootstrap) { /* BootstrapResult{1 version, 2 address, 3 protocol} */
        uint8_t result[256] = {1 << 3, 3};
        uint8_t *p = put_text(result + 2, 2, address);
        p = put_text(p, 3, "ttrpc");
        return write(1, result, p - result) == p - result ? 0 : 1;
    }
    snprintf(answer, sizeof answer, "{\"version\":2,\"address\":\"%s\",\"protocol\":\"ttrpc\"}",
             address);
    write_address(answer);
    return write(1, answer, strlen(answer)) == (ssize_t)strlen(answer) ? 0 : 1;
}

static int info(void)
{
    static uint8_t input[MAX_STDIN], answer[2048];
    read_stdin(input, sizeof input); /* runtime options, of which there are none */
    size_t size = runtime_info(answer, HYPERCORE_VERSION);
    return write(1, answer, size) == (ssize_t)size ? 0 : 1;
}

/* Whether the server itself gave everything of the task back; its last answer is repeated then. */
static bool was_deleted(const char *bundle)
{
    char path[PATH_MAX];
    uint8_t answer[512];
    const char *separator = *bundle ? "/" : "";
    if (snprintf(path, sizeof path, "%s%s" DELETED, bundle, separator) >= PATH_MAX)
        return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return false;
    ssize_t size = read(fd, answer, sizeof answer);
    close(fd);
    return size > 0 && write(1, answer, size) == size;
}

int main(int argc, char **argv)
{
    const char *name = argc ? argv[0] : "hypercore";
    const char *slash = strrchr(name, '/');
    if (slash)
        name = slash + 1;
    if (strncmp(name, SHIM_PREFIX, strlen(SHIM_PREFIX)) != 0) {
        /* A Ctrl-C while Python starts would print a traceback; hypercore/__main__.py takes it. */
        find_python();
        sigset_t interrupt;
        sigemptyset(&interrupt);
        sigaddset(&interrupt, SIGINT);
        sigprocmask(SIG_BLOCK, &interrupt, NULL);
        become_module("hypercore", argc, argv);
    }

    struct options o = parse(argc, argv);
    if (o.version) {
        printf("%s:\n  Version:  %s\n", name, HYPERCORE_VERSION);
        return 0;
    }
    if (o.info)
        return info();
    if (strcmp(o.action, "delete") == 0 && was_deleted(o.bundle))
        return 0;
    find_python();
    if (strcmp(o.action, "delete") == 0)
        become_script("delete", argc, argv);
    if (strcmp(o.action, "start") == 0)
        return start(&o);
    fail("no action given; %s is started by containerd with start or delete, not by hand", name);
}
