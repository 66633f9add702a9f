/* /init of the initrd: load the modules that the root disk needs, make that disk the root, and
   run its /init.

   For kernels with these drivers as modules, such as Debian's; others boot without an initrd.
   /modules/list names the files in order. The disk is root= of the kernel's command line (/dev/vda
   when there is none), its file system rootfstype= (erofs). Deletes itself, since a file in the
   initrd is memory the guest never gets back. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { DEADLINE_MS = 10000 };

static void die(const char *what)
{
    perror(what);
    _exit(1); /* the kernel panics, which ends the VM */
}

static long long clock_us(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void open_console(void)
{
    int fd = open("/dev/console", O_RDWR);
    if (fd < 0)
        return;
    for (int target = 0; target <= 2; target++)
        dup2(fd, target);
    if (fd > 2)
        close(fd);
}

static void load_modules(void)
{
    char line[128], path[160];
    FILE *list = fopen("/modules/list", "re");
    if (!list)
        return;
    while (fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = 0;
        snprintf(path, sizeof path, "/modules/%s", line);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            perror(path);
        if (fd >= 0)
            close(fd);
    }
    fclose(list);
}

/* Copies the value of `key` from the kernel's command line over the default in `value`. */
static void parameter(const char *key, char *value, size_t size)
{
    static char line[4096];
    if (!line[0]) {
        int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
        if (fd >= 0)
            close(fd);
        line[n > 0 ? n : 0] = 0;
    }
    size_t length = strlen(key);
    for (const char *at = line; (at = strstr(at, key)); at += length) {
        if (at != line && at[-1] != ' ')
            continue;
        size_t n = strcspn(at + length, " \n");
        if (n && n < size) {
            memcpy(value, at + length, n);
            value[n] = 0;
        }
    }
}

static void mount_root(void)
{
    char device[64] = "/dev/vda", type[16] = "erofs";
    mkdir("/proc", 0755);
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "") == 0) {
        parameter("root=", device, sizeof device);
        parameter("rootfstype=", type, sizeof type);
        umount("/proc");
    }
    mkdir("/root", 0755);
    /* The kernel finds disks in the background. */
    const struct timespec pause = {.tv_nsec = 1000000};
    for (int waited = 0; mount(device, "/root", type, MS_RDONLY, "") < 0; waited++) {
        if (waited >= DEADLINE_MS || (errno != ENOENT && errno != ENXIO && errno != ENOTBLK))
            die(device);
        nanosleep(&pause, NULL);
    }
}

/* Removes what the initrd holds; mount points are skipped because they are busy. */
static void remove_tree(int fd)
{
    DIR *directory = fdopendir(fd);
    struct dirent *entry;
    if (!directory)
        return;
    while ((entry = readdir(directory))) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, "dev") ||
            !strcmp(name, "root"))
            continue;
        if (entry->d_type == DT_DIR) {
            int child = openat(fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (child >= 0)
                remove_tree(child);
        }
        unlinkat(fd, name, entry->d_type == DT_DIR ? AT_REMOVEDIR : 0);
    }
    closedir(directory);
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    open_console();
    load_modules();
    mount_root();
    remove_tree(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) < 0)
        die("/root/dev");
    if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0)
        die("/root");
    /* For the console's record of where the time of a boot went: since boot, and on the CPU. */
    char root_time[48], root_cpu[48];
    snprintf(root_time, sizeof root_time, "HYPERCORE_ROOT_US=%lld", clock_us(CLOCK_BOOTTIME));
    snprintf(root_cpu, sizeof root_cpu, "HYPERCORE_ROOT_CPU_US=%lld",
             clock_us(CLOCK_PROCESS_CPUTIME_ID));
    char *const arguments[] = {"/init", NULL};
    char *const environment[] = {
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin", root_time, root_cpu, NULL,
    };
    execve(arguments[0], arguments, environment);
    die("/init");
}
