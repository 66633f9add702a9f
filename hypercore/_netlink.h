/* Netlink messages in one bounded buffer, sent in one system call, answers read back.
 *
 * For _tap.pyx only. No policy: callers say which attributes and which values. Functions that
 * talk to the kernel return >= 0 or -errno and touch no Python object. A message that does not
 * fit marks the buffer as overflown, and nl_send then fails with -EMSGSIZE: nothing is cut.
 */
#ifndef HYPERCORE_NETLINK_H
#define HYPERCORE_NETLINK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/ioctl.h>
#include <linux/if_packet.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#define HC_NEST_MAX 8
#define HC_NOTE_SIZE 128

struct hc_nl {
    char *buf;
    size_t cap, len;   /* len: end of the last finished message */
    size_t cur;        /* start of the message being built */
    size_t nest[HC_NEST_MAX];
    int depth, overflow;
    int broken;        /* answers may be left unread: the socket is not to be used again */
    uint32_t seq;
    char note[HC_NOTE_SIZE]; /* the kernel's own words about the first error */
};

static void nl_init(struct hc_nl *n, char *buf, size_t cap)
{
    memset(n, 0, sizeof *n);
    n->buf = buf;
    n->cap = cap;
}

static void *nl_reserve(struct hc_nl *n, size_t at, size_t size)
{
    if (n->overflow || at > n->cap || size > n->cap - at) {
        n->overflow = 1;
        return NULL;
    }
    memset(n->buf + at, 0, size);
    return n->buf + at;
}

static struct nlmsghdr *nl_current(struct hc_nl *n)
{
    return (struct nlmsghdr *)(n->buf + n->cur);
}

static void nl_begin(struct hc_nl *n, int type, int flags, const void *body, size_t size)
{
    struct nlmsghdr *h = nl_reserve(n, n->len, NLMSG_SPACE(size));
    n->cur = n->len;
    n->depth = 0;
    n->seq++;
    if (!h)
        return;
    h->nlmsg_type = type;
    h->nlmsg_flags = NLM_F_REQUEST | flags;
    h->nlmsg_seq = n->seq;
    h->nlmsg_len = NLMSG_SPACE(size);
    memcpy(NLMSG_DATA(h), body, size);
}

static void nl_attr(struct hc_nl *n, int type, const void *data, size_t size)
{
    struct rtattr *a;
    size_t at;
    if (n->overflow)
        return;
    at = n->cur + nl_current(n)->nlmsg_len;
    a = nl_reserve(n, at, RTA_SPACE(size));
    if (!a)
        return;
    a->rta_type = type;
    a->rta_len = RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(a), data, size);
    nl_current(n)->nlmsg_len += RTA_SPACE(size);
}

/* Attributes that somebody else has made, padding included. */
static void nl_attributes(struct hc_nl *n, const void *data, size_t size)
{
    char *at;
    if (n->overflow)
        return;
    at = nl_reserve(n, n->cur + nl_current(n)->nlmsg_len, size);
    if (!at)
        return;
    if (size)
        memcpy(at, data, size);
    nl_current(n)->nlmsg_len += size;
}

static void nl_attr_u32(struct hc_nl *n, int type, uint32_t value)
{
    nl_attr(n, type, &value, sizeof value);
}

static void nl_attr_str(struct hc_nl *n, int type, const char *text)
{
    nl_attr(n, type, text, strlen(text) + 1);
}

static void nl_nest(struct hc_nl *n, int type)
{
    if (n->depth >= HC_NEST_MAX)
        n->overflow = 1;
    if (n->overflow)
        return;
    n->nest[n->depth++] = n->cur + nl_current(n)->nlmsg_len;
    nl_attr(n, type, NULL, 0);
}

static void nl_unnest(struct hc_nl *n)
{
    struct rtattr *a;
    if (n->overflow)
        return;
    a = (struct rtattr *)(n->buf + n->nest[--n->depth]);
    a->rta_len = n->cur + nl_current(n)->nlmsg_len - n->nest[n->depth];
}

static void nl_end(struct hc_nl *n)
{
    if (!n->overflow)
        n->len = n->cur + NLMSG_ALIGN(nl_current(n)->nlmsg_len);
}

/* -- talking to the kernel -- */

static int nl_open(int protocol)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    int one = 1, err;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    /* Dumps then honour their filters instead of ignoring what they do not know. */
    setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        err = errno;
        close(fd);
        return -err;
    }
    return fd;
}

static int nl_send(struct hc_nl *n, int fd)
{
    /* The kernel takes netlink messages up to the socket's send buffer; big batches need more. */
    int size = (int)n->len + 4096;
    if (n->overflow)
        return -EMSGSIZE;
    if (size > 200000)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    while (send(fd, n->buf, n->len, 0) < 0)
        if (errno != EINTR) {
            n->broken = 1;
            return -errno;
        }
    return 0;
}

static void nl_note(struct hc_nl *n, const struct nlmsghdr *h)
{
    const struct nlmsgerr *e = NLMSG_DATA(h);
    size_t at = NLMSG_LENGTH(sizeof *e);
    if (!(h->nlmsg_flags & NLM_F_ACK_TLVS))
        return;
    if (!(h->nlmsg_flags & NLM_F_CAPPED))
        at += NLMSG_ALIGN(e->msg.nlmsg_len) - sizeof(struct nlmsghdr);
    while (at + sizeof(struct rtattr) <= h->nlmsg_len) {
        const struct rtattr *a = (const struct rtattr *)((const char *)h + at);
        if (a->rta_len < sizeof *a || at + a->rta_len > h->nlmsg_len)
            return;
        if ((a->rta_type & NLA_TYPE_MASK) == NLMSGERR_ATTR_MSG) {
            size_t size = RTA_PAYLOAD(a);
            if (size >= HC_NOTE_SIZE)
                size = HC_NOTE_SIZE - 1;
            memcpy(n->note, RTA_DATA(a), size);
            n->note[size] = 0;
        }
        at += RTA_ALIGN(a->rta_len);
    }
}

/* rtnetlink and nfnetlink work inside send(): the answers wait in our socket when it returns, so
 * reading until the socket is empty sees all of them, however many messages were refused. */
static int nl_answers(struct hc_nl *n, int fd)
{
    union { struct nlmsghdr h; char bytes[16384]; } in;
    int first = 0, acks = 0;
    for (;;) {
        struct nlmsghdr *h = &in.h;
        ssize_t got = recv(fd, &in, sizeof in, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            break;
        if (got < 0) {
            n->broken = 1;
            return -errno;
        }
        for (; NLMSG_OK(h, got); h = NLMSG_NEXT(h, got)) {
            int err;
            if (h->nlmsg_type != NLMSG_ERROR)
                continue;
            err = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
            acks++;
            if (err && !first) {
                first = err;
                nl_note(n, h);
            }
        }
    }
    if (first)
        return first;
    return acks ? 0 : -EPROTO;
}

static int nl_commit(struct hc_nl *n, int fd)
{
    int err = nl_send(n, fd);
    return err < 0 ? err : nl_answers(n, fd);
}

/* -- sockets and the TUN device of another network namespace --
 *
 * Both belong to the namespace of the thread that opens them. A thread of its own enters it and
 * ends, so that no other code can ever run in the wrong namespace. */

struct hc_open {
    int netns_fd, protocol, want_tun;
    int nl_fd, tun_fd, err;
};

static void open_here(struct hc_open *o)
{
    o->nl_fd = nl_open(o->protocol);
    if (o->nl_fd < 0) {
        o->err = o->nl_fd;
        return;
    }
    if (!o->want_tun)
        return;
    o->tun_fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (o->tun_fd < 0) {
        o->err = -errno;
        close(o->nl_fd);
        o->nl_fd = -1;
    }
}

static void *open_there(void *arg)
{
    struct hc_open *o = arg;
    if (setns(o->netns_fd, CLONE_NEWNET) < 0)
        o->err = -errno;
    else
        open_here(o);
    return NULL;
}

static int open_sockets(struct hc_open *o, int netns_fd, int protocol, int want_tun)
{
    pthread_t thread;
    int err;
    o->netns_fd = netns_fd;
    o->protocol = protocol;
    o->want_tun = want_tun;
    o->nl_fd = o->tun_fd = -1;
    o->err = 0;
    if (netns_fd < 0) {
        open_here(o);
        return o->err;
    }
    err = pthread_create(&thread, NULL, open_there, o);
    if (err)
        return -err;
    pthread_join(thread, NULL);
    return o->err;
}

static void *unshare_there(void *arg)
{
    int *fd = arg;
    *fd = unshare(CLONE_NEWNET) < 0 ? -1 : open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        *fd = -errno;
    return NULL;
}

/* fd of a new network namespace, made by a thread that ends with it, or -errno. */
static int netns_new(void)
{
    pthread_t thread;
    int fd, err = pthread_create(&thread, NULL, unshare_there, &fd);
    if (err)
        return -err;
    pthread_join(thread, NULL);
    return fd;
}

struct hc_packet {
    int netns_fd, fd;
    const char *name;
};

static void *packet_there(void *arg)
{
    struct hc_packet *p = arg;
    struct sockaddr_ll address = {.sll_family = AF_PACKET};
    struct ifreq r;
    int fd;
    if (setns(p->netns_fd, CLONE_NEWNET) < 0) {
        p->fd = -errno;
        return NULL;
    }
    fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        p->fd = -errno;
        return NULL;
    }
    memset(&r, 0, sizeof r);
    strncpy(r.ifr_name, p->name, IFNAMSIZ - 1);
    p->fd = ioctl(fd, SIOCGIFINDEX, &r) < 0 ? -errno : fd;
    if (p->fd >= 0) {
        address.sll_ifindex = r.ifr_ifindex;
        if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
            p->fd = -errno;
    }
    if (p->fd < 0)
        close(fd);
    return NULL;
}

/* fd of a packet socket that sends out of a link in another namespace and receives nothing. */
static int packet_open(int netns_fd, const char *name)
{
    struct hc_packet p = {.netns_fd = netns_fd, .fd = -EIO, .name = name};
    pthread_t thread;
    int err = pthread_create(&thread, NULL, packet_there, &p);
    if (err)
        return -err;
    pthread_join(thread, NULL);
    return p.fd;
}

/* -- the socket for nf_tables --
 *
 * Closing a NETLINK_NETFILTER socket waits for the RCU grace period of whatever anybody deleted
 * last (nft_rcv_nl_event flushes the destroy work: 10 ms). So one socket stays open, for the
 * network namespace and the process it was opened in; users take turns. */

static struct {
    pthread_mutex_t lock;
    int fd;
    pid_t pid;
    ino_t netns;
} kept = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

static void kept_close(void)
{
    pthread_mutex_lock(&kept.lock);
    if (kept.fd >= 0)
        close(kept.fd);
    kept.fd = -1;
    pthread_mutex_unlock(&kept.lock);
}

/* fd to give back with kept_release, or -errno. */
static int kept_acquire(void)
{
    struct stat here;
    if (stat("/proc/thread-self/ns/net", &here) < 0)
        return -errno;
    pthread_mutex_lock(&kept.lock);
    if (kept.fd >= 0 && (kept.pid != getpid() || kept.netns != here.st_ino)) {
        close(kept.fd);
        kept.fd = -1;
    }
    if (kept.fd < 0) {
        kept.fd = nl_open(NETLINK_NETFILTER);
        kept.pid = getpid();
        kept.netns = here.st_ino;
    }
    if (kept.fd < 0) {
        int err = kept.fd;
        kept.fd = -1;
        pthread_mutex_unlock(&kept.lock);
        return err;
    }
    return kept.fd;
}

static void kept_release(int broken)
{
    if (broken) {
        close(kept.fd);
        kept.fd = -1;
    }
    pthread_mutex_unlock(&kept.lock);
}

/* -- any request, answers collected -- */

struct hc_reply {
    char *data;     /* malloc'ed; the caller frees it */
    size_t size, cap;
};

static int reply_append(struct hc_reply *r, const struct nlmsghdr *h)
{
    size_t need = NLMSG_ALIGN(h->nlmsg_len);
    if (need > r->cap - r->size) {
        size_t cap = 2 * (r->size + need);
        char *bigger = realloc(r->data, cap);
        if (!bigger)
            return -ENOMEM;
        r->data = bigger;
        r->cap = cap;
    }
    memcpy(r->data + r->size, h, need);
    r->size += need;
    return 0;
}

/* Send the ready messages in `n` and collect what is not an acknowledgement.
 *
 * With `dump` reads until NLMSG_DONE; -EINTR says that the listed things changed meanwhile and the
 * listing may be torn. */
static int nl_transact(struct hc_nl *n, int fd, int dump, struct hc_reply *reply)
{
    union { struct nlmsghdr h; char bytes[65536]; } in;
    int first = 0, torn = 0, done = 0;
    int err = nl_send(n, fd);
    if (err < 0)
        return err;
    while (!done) {
        struct nlmsghdr *h = &in.h;
        ssize_t got = recv(fd, &in, sizeof in, dump ? 0 : MSG_DONTWAIT);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN && !dump)
            break;
        if (got < 0) {
            n->broken = 1;
            return -errno;
        }
        for (; NLMSG_OK(h, got); h = NLMSG_NEXT(h, got)) {
            torn |= h->nlmsg_flags & NLM_F_DUMP_INTR;
            err = 0;
            if (h->nlmsg_type == NLMSG_ERROR) {
                err = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
                if (err && !first)
                    nl_note(n, h);
                done = dump;
            } else if (h->nlmsg_type == NLMSG_DONE) {
                if (h->nlmsg_len >= NLMSG_LENGTH(sizeof err))
                    err = *(int *)NLMSG_DATA(h);
                done = 1;
            } else {
                err = reply_append(reply, h);
            }
            if (err < 0 && !first)
                first = err;
        }
    }
    return first < 0 ? first : torn ? -EINTR : 0;
}

static int nft_transact(struct hc_nl *n, int dump, struct hc_reply *reply)
{
    int err, fd = kept_acquire();
    if (fd < 0)
        return fd;
    err = nl_transact(n, fd, dump, reply);
    kept_release(n->broken);
    return err;
}

#endif
