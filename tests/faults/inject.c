/* Makes one chosen system call of one room fail, for tests/integration/test_faults.py.
 *
 * Preloaded (LD_PRELOAD). A wrapper counts the calls that come from the code of a watched room,
 * told by the return address; the one that is armed does not reach the kernel but fails with the
 * errno it was given. All other callers, Python's own code first of all, notice nothing.
 *
 * Every wrapped function takes and returns integers and pointers only, so that one signature
 * serves all: seven registers or slots are handed on whatever the real number is.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

typedef long call(long, long, long, long, long, long, long);

#define EXPORTED __attribute__((visibility("default"), noinline))
#define MAX_ROOMS 4

/* name, what it returns when it fails */
#define FUNCTIONS(X)                                                                             \
    X(bind, -1) X(chdir, -1) X(clone, -1) X(connect, -1) X(copy_file_range, -1) X(dup2, -1)      \
    X(epoll_create1, -1) X(epoll_ctl, -1) X(epoll_wait, -1) X(eventfd, -1) X(execve, -1)         \
    X(fallocate64, -1) X(fcntl64, -1) X(fstat64, -1) X(ftruncate64, -1) X(getsockopt, -1)        \
    X(inotify_add_watch, -1) X(inotify_init1, -1) X(ioctl, -1) X(lseek64, -1) X(mkdir, -1)       \
    X(mmap64, -1) X(mount, -1) X(open64, -1) X(poll, -1) X(prctl, -1) X(pread64, -1)             \
    X(pwrite64, -1) X(read, -1) X(recv, -1) X(send, -1) X(setns, -1) X(setsid, -1)               \
    X(setsockopt, -1) X(socket, -1) X(splice, -1) X(stat64, -1) X(symlink, -1) X(syscall, -1)    \
    X(umount2, -1) X(unshare, -1) X(waitid, -1)

#define NUMBER(name, failure) N_##name,
enum { FUNCTIONS(NUMBER) N_write, N_pthread_create, N_malloc, N_calloc, N_realloc, N_FUNCTIONS };

#define NAME(name, failure) #name,
static const char *const names[] = {FUNCTIONS(NAME) "write", "pthread_create", "malloc", "calloc",
                                    "realloc"};

static call *real[N_FUNCTIONS];
static struct {
    unsigned long low, high;
} rooms[MAX_ROOMS];
static int room_count;
static atomic_long calls[N_FUNCTIONS];
static atomic_int armed = -1;
static long armed_nth;
static int armed_error;
static atomic_int hit;

__attribute__((constructor)) static void resolve(void)
{
    for (int i = 0; i < N_FUNCTIONS; i++)
        real[i] = (call *)dlsym(RTLD_NEXT, names[i]);
}

/* The errno to fail with, or 0 to go on. */
static int fails(int number, void *caller)
{
    unsigned long at = (unsigned long)caller;
    for (int i = 0; i < room_count; i++) {
        if (at < rooms[i].low || at >= rooms[i].high)
            continue;
        long nth = atomic_fetch_add(&calls[number], 1) + 1;
        if (atomic_load(&armed) == number && nth == armed_nth) {
            atomic_store(&hit, 1);
            return armed_error;
        }
        return 0;
    }
    return 0;
}

#define WRAP(name, failure)                                                                      \
    EXPORTED long name(long a, long b, long c, long d, long e, long f, long g)                   \
    {                                                                                            \
        int error = fails(N_##name, __builtin_return_address(0));                                \
        if (error) {                                                                             \
            errno = error;                                                                       \
            return failure;                                                                      \
        }                                                                                        \
        return real[N_##name](a, b, c, d, e, f, g);                                              \
    }
FUNCTIONS(WRAP)

/* Eight bytes are an eventfd's, which cannot fail unless its counter overflows. */
EXPORTED long write(long fd, long data, long size)
{
    int error = size == 8 ? 0 : fails(N_write, __builtin_return_address(0));
    if (error) {
        errno = error;
        return -1;
    }
    return real[N_write](fd, data, size, 0, 0, 0, 0);
}

/* Returns the number itself. */
EXPORTED long pthread_create(long a, long b, long c, long d)
{
    int error = fails(N_pthread_create, __builtin_return_address(0));
    return error ? error : real[N_pthread_create](a, b, c, d, 0, 0, 0);
}

/* Not by dlsym: it allocates itself. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

#define ALLOCATE(number, result)                                                                 \
    if (fails(number, __builtin_return_address(0))) {                                            \
        errno = ENOMEM;                                                                          \
        return NULL;                                                                             \
    }                                                                                            \
    return result

EXPORTED void *malloc(size_t size)
{
    ALLOCATE(N_malloc, __libc_malloc(size));
}
EXPORTED void *calloc(size_t count, size_t size)
{
    ALLOCATE(N_calloc, __libc_calloc(count, size));
}
EXPORTED void *realloc(void *old, size_t size)
{
    ALLOCATE(N_realloc, __libc_realloc(old, size));
}

/* For the test, by ctypes. */

EXPORTED int faults_watch(unsigned long low, unsigned long high)
{
    if (room_count == MAX_ROOMS)
        return -1;
    rooms[room_count].low = low;
    rooms[room_count].high = high;
    room_count++;
    return 0;
}

EXPORTED const char *faults_name(int number)
{
    return number < N_FUNCTIONS ? names[number] : NULL;
}

EXPORTED long faults_calls(int number)
{
    return atomic_load(&calls[number]);
}

/* Forget the counts; `number` -1 arms nothing. */
EXPORTED void faults_arm(int number, long nth, int error)
{
    atomic_store(&armed, -1);
    for (int i = 0; i < N_FUNCTIONS; i++)
        atomic_store(&calls[i], 0);
    atomic_store(&hit, 0);
    armed_nth = nth;
    armed_error = error;
    atomic_store(&armed, number);
}

EXPORTED int faults_hit(void)
{
    return atomic_load(&hit);
}
