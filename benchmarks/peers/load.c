/* Load for the pump benchmark: guests that write and readers that read, in a process of its own so
 * that its cost is not the peer's.
 *
 * load flow SECONDS SIZE COUNT BASE SINK   COUNT guest sockets at fds BASE.., their readers' ends at
 *                                          fds BASE+COUNT..; SINK read (32 KiB, as containerd) or
 *                                          splice. Prints "begin", then "end BYTES SECONDS".
 * load echo ROUNDS BASE                    guest BASE, its stdout BASE+1, its stdin BASE+2: one byte
 *                                          out and back. Prints "begin", then "end" and ns a round.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { WARM_UP_US = 300000, SINK_SIZE = 32768, SPLICE_SIZE = 1 << 20, BATCH = 256 };

static int count, base, write_size, use_splice, null_fd;
static volatile int stop;
static volatile long long received;
static char zeros[1 << 20], sink[1 << 20];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(int epoll, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) {
        perror("epoll_ctl");
        exit(1);
    }
}

static void *guests(void *unused) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), n, i;
    struct epoll_event events[BATCH];
    (void)unused;
    for (i = 0; i < count; i++) {
        fcntl(base + i, F_SETFL, count == 1 ? 0 : O_NONBLOCK);
        watch(epoll, base + i, EPOLLOUT);
    }
    while (count == 1 && !stop)
        if (write(base, zeros, write_size) < 0)
            break;
    while (count > 1 && !stop) {
        n = epoll_wait(epoll, events, BATCH, 100);
        for (i = 0; i < n; i++)
            if (write(events[i].data.fd, zeros, write_size) < 0 && errno != EAGAIN)
                epoll_ctl(epoll, EPOLL_CTL_DEL, events[i].data.fd, NULL);
    }
    return NULL;
}

static ssize_t take(int fd) {
    if (use_splice)
        return splice(fd, NULL, null_fd, NULL, SPLICE_SIZE,
                      SPLICE_F_MOVE | (count == 1 ? 0 : SPLICE_F_NONBLOCK));
    return read(fd, sink, SINK_SIZE);
}

static void *readers(void *unused) {
    int epoll = epoll_create1(EPOLL_CLOEXEC), n, i;
    struct epoll_event events[BATCH];
    ssize_t got;
    (void)unused;
    for (i = 0; i < count; i++) {
        fcntl(base + count + i, F_SETFL, count == 1 ? 0 : O_NONBLOCK);
        watch(epoll, base + count + i, EPOLLIN);
    }
    while (count == 1 && !stop && (got = take(base + 1)) > 0)
        received += got;
    while (count > 1 && !stop) {
        n = epoll_wait(epoll, events, BATCH, 100);
        for (i = 0; i < n; i++)
            if ((got = take(events[i].data.fd)) > 0)
                received += got;
    }
    return NULL;
}

static int flow(double seconds) {
    pthread_t threads[2];
    long long before;
    double started;
    pthread_create(&threads[0], NULL, readers, NULL);
    pthread_create(&threads[1], NULL, guests, NULL);
    usleep(WARM_UP_US);
    before = received;
    started = now();
    printf("begin\n");
    fflush(stdout);
    usleep((useconds_t)(seconds * 1e6));
    printf("end %lld %.6f\n", received - before, now() - started);
    fflush(stdout);
    stop = 1;
    _exit(0); /* a thread may be waiting for ever in a read */
}

static void exchange(int from, int to) {
    char byte = 'x';
    if (write(from, &byte, 1) != 1 || read(to, &byte, 1) != 1) {
        perror("echo");
        exit(1);
    }
}

static int echo(int rounds) {
    double started;
    int i;
    for (i = 0; i < 3; i++)
        fcntl(base + i, F_SETFL, 0);
    for (i = -1000; i < rounds; i++) {
        if (i == 0) {
            printf("begin\n");
            fflush(stdout);
        }
        started = now();
        exchange(base, base + 1);
        exchange(base + 2, base);
        if (i >= 0)
            ((float *)sink)[i] = (float)((now() - started) * 1e9);
    }
    printf("end");
    for (i = 0; i < rounds; i++)
        printf(" %.0f", ((float *)sink)[i]);
    printf("\n");
    return 0;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    memset(zeros, 'x', sizeof zeros);
    if (argc == 7 && !strcmp(argv[1], "flow")) {
        write_size = atoi(argv[3]);
        count = atoi(argv[4]);
        base = atoi(argv[5]);
        use_splice = !strcmp(argv[6], "splice");
        return flow(atof(argv[2]));
    }
    if (argc == 4 && !strcmp(argv[1], "echo") && atoi(argv[2]) <= (int)(sizeof sink / sizeof(float))) {
        base = atoi(argv[3]);
        return echo(atoi(argv[2]));
    }
    fprintf(stderr, "usage: load flow SECONDS SIZE COUNT BASE SINK | load echo ROUNDS BASE\n");
    return 2;
}
