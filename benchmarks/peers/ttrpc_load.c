/* ttrpc_load SOCKET CLIENTS CALLS: State of one task, one call under way on each connection.
 *
 * Prints "calls seconds p50_us p99_us", all of them counted. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SERVICE "containerd.task.v3.Task"
#define METHOD "State"
#define TASK_ID "benchmark-container-0001"

struct client {
    int fd;
    uint32_t stream_id;
    double begun;
};

static uint8_t frame[128];
static size_t frame_size;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void put32(uint8_t *p, uint32_t value)
{
    p[0] = value >> 24, p[1] = value >> 16, p[2] = value >> 8, p[3] = value;
}

static uint8_t *put_field(uint8_t *p, int number, const void *data, size_t size)
{
    *p++ = number << 3 | 2;
    *p++ = size; /* all are below 128 bytes */
    return (uint8_t *)memcpy(p, data, size) + size;
}

static void make_frame(void)
{
    uint8_t payload[64];
    size_t payload_size = put_field(payload, 1, TASK_ID, strlen(TASK_ID)) - payload;
    uint8_t *p = put_field(frame + 10, 1, SERVICE, strlen(SERVICE));
    p = put_field(p, 2, METHOD, strlen(METHOD));
    p = put_field(p, 3, payload, payload_size);
    frame_size = p - frame;
    put32(frame, frame_size - 10);
    frame[8] = 1;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void ask(struct client *c)
{
    put32(frame + 4, c->stream_id);
    c->stream_id += 2;
    c->begun = now();
    if (write(c->fd, frame, frame_size) != (ssize_t)frame_size)
        die("write");
}

static void take_answer(struct client *c)
{
    uint8_t answer[4096];
    size_t have = 0, need = 10;
    while (have < need) {
        ssize_t n = read(c->fd, answer + have, sizeof answer - have);
        if (n <= 0)
            die("read");
        have += n;
        if (have >= 10)
            need = 10 + (answer[2] << 8 | answer[3]);
    }
    if (answer[8] != 2 || answer[10] != 0x12) { /* Response{2 payload}: no status */
        fputs("the answer is an error\n", stderr);
        exit(1);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int clients = atoi(argv[2]), calls = atoi(argv[3]), done = 0, asked = 0;
    struct client *all = calloc(clients, sizeof *all);
    double *took = calloc(calls, sizeof *took);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", argv[1]);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    make_frame();
    for (int i = 0; i < clients; i++) {
        all[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        all[i].stream_id = 1;
        if (connect(all[i].fd, (struct sockaddr *)&address, sizeof address) != 0)
            die("connect");
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    double begun = now();
    for (int i = 0; i < clients && asked < calls; i++, asked++)
        ask(&all[i]);
    while (done < calls) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, 10000);
        if (count <= 0)
            die("no answer within 10 s");
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            take_answer(c);
            took[done++] = now() - c->begun;
            if (asked < calls) {
                ask(c);
                asked++;
            }
        }
    }
    double seconds = now() - begun;
    qsort(took, calls, sizeof *took, compare);
    printf("%d %f %f %f\n", calls, seconds, took[calls / 2] * 1e6, took[calls * 99 / 100] * 1e6);
    return 0;
}
