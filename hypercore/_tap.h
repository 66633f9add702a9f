/* Links, addresses, neighbours, tc, TAP devices and nft elements as messages; for _tap.pyx only. */
#ifndef HYPERCORE_TAP_H
#define HYPERCORE_TAP_H

#include "_netlink.h"
#include <sys/ioctl.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>

#define HC_VNET_HDR_SIZE 12 /* struct virtio_net_hdr_v1, what virtio 1.0 devices speak */

/* -- links -- */

static void link_begin(struct hc_nl *n, int ifindex, unsigned set_flags)
{
    struct ifinfomsg i = {.ifi_family = AF_UNSPEC, .ifi_index = ifindex,
                          .ifi_change = set_flags, .ifi_flags = set_flags};
    nl_begin(n, RTM_NEWLINK, NLM_F_ACK, &i, sizeof i);
}

/* No IPv6 link-local address of the host's own (37 % of the cost of "up" at 1000 devices). It has
 * to come in a message before the one that sets IFF_UP. */
static void link_no_address_generation(struct hc_nl *n)
{
    uint8_t none = 1; /* IN6_ADDR_GEN_MODE_NONE */
    nl_nest(n, AF_INET6);
    nl_attr(n, IFLA_INET6_ADDR_GEN_MODE, &none, sizeof none);
    nl_unnest(n);
}

/* The device forwards, accepts only sources that are routed to it, and answers ARP only for its
 * own address, so that a guest cannot ask which addresses the host has elsewhere. */
static void link_routed(struct hc_nl *n, int route_localnet)
{
    nl_nest(n, AF_INET);
    nl_nest(n, IFLA_INET_CONF);
    nl_attr_u32(n, IPV4_DEVCONF_FORWARDING, 1);
    nl_attr_u32(n, IPV4_DEVCONF_RP_FILTER, 1);
    nl_attr_u32(n, IPV4_DEVCONF_ARP_IGNORE, 2);
    nl_attr_u32(n, IPV4_DEVCONF_ACCEPT_REDIRECTS, 0);
    nl_attr_u32(n, IPV4_DEVCONF_SEND_REDIRECTS, 0);
    if (route_localnet)
        nl_attr_u32(n, IPV4_DEVCONF_ROUTE_LOCALNET, 1);
    nl_unnest(n);
    nl_unnest(n);
}

static void address_add(struct hc_nl *n, int ifindex, int family, const void *address, int prefix)
{
    struct ifaddrmsg a = {.ifa_family = family, .ifa_prefixlen = prefix, .ifa_index = ifindex,
                          .ifa_flags = family == AF_INET6 ? IFA_F_NODAD : 0};
    size_t size = family == AF_INET6 ? 16 : 4;
    nl_begin(n, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &a, sizeof a);
    nl_attr(n, IFA_LOCAL, address, size);
    nl_attr(n, IFA_ADDRESS, address, size);
    nl_end(n);
}

static void neighbour_add(struct hc_nl *n, int ifindex, int family, const void *address,
                          const void *mac)
{
    struct ndmsg d = {.ndm_family = family, .ndm_ifindex = ifindex, .ndm_state = NUD_PERMANENT};
    nl_begin(n, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &d, sizeof d);
    nl_attr(n, NDA_DST, address, family == AF_INET6 ? 16 : 4);
    nl_attr(n, NDA_LLADDR, mac, ETH_ALEN);
    nl_end(n);
}

static void link_delete(struct hc_nl *n, int ifindex, uint32_t group)
{
    struct ifinfomsg i = {.ifi_family = AF_UNSPEC, .ifi_index = ifindex};
    nl_begin(n, RTM_DELLINK, NLM_F_ACK, &i, sizeof i);
    if (!ifindex)
        nl_attr_u32(n, IFLA_GROUP, group);
    nl_end(n);
}

static void ingress_add(struct hc_nl *n, int ifindex)
{
    struct tcmsg t = {.tcm_family = AF_UNSPEC, .tcm_ifindex = ifindex,
                      .tcm_handle = TC_H_MAKE(TC_H_INGRESS, 0), .tcm_parent = TC_H_INGRESS};
    nl_begin(n, RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &t, sizeof t);
    nl_attr_str(n, TCA_KIND, "ingress");
    nl_end(n);
}

/* All that comes in on `from` leaves on `to`. u32 with one key that always matches: cls_matchall
 * is missing on small kernels. */
static void redirect_add(struct hc_nl *n, int from, int to)
{
    struct tcmsg t = {.tcm_family = AF_UNSPEC, .tcm_ifindex = from,
                      .tcm_parent = TC_H_MAKE(TC_H_INGRESS, 0),
                      .tcm_info = TC_H_MAKE(1 << 16, htons(ETH_P_ALL))};
    struct { struct tc_u32_sel sel; struct tc_u32_key key; } all;
    struct tc_mirred m = {.action = TC_ACT_STOLEN, .eaction = TCA_EGRESS_REDIR, .ifindex = to};
    memset(&all, 0, sizeof all);
    all.sel.nkeys = 1;
    all.sel.flags = TC_U32_TERMINAL;
    nl_begin(n, RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &t, sizeof t);
    nl_attr_str(n, TCA_KIND, "u32");
    nl_nest(n, TCA_OPTIONS);
    nl_attr(n, TCA_U32_SEL, &all, sizeof all);
    nl_nest(n, TCA_U32_ACT);
    nl_nest(n, 1);
    nl_attr_str(n, TCA_ACT_KIND, "mirred");
    nl_nest(n, TCA_ACT_OPTIONS);
    nl_attr(n, TCA_MIRRED_PARMS, &m, sizeof m);
    nl_unnest(n);
    nl_unnest(n);
    nl_unnest(n);
    nl_unnest(n);
    nl_end(n);
}

/* -- TAP -- */

struct hc_tap {
    const char *name;           /* <= 15 bytes */
    const char *alias;          /* <= 255 bytes, may be empty */
    uint32_t group, mtu;
    int owner, persist, master, redirect_to, netns_fd;
    const void *mac;            /* of the host's side; NULL: the kernel's choice */
    const void *address4, *address6, *neighbour4, *neighbour6, *neighbour_mac;
    int prefix4, prefix6;
    int route_localnet;         /* 127.0.0.0/8 may be routed over it */
    int existing;               /* ifindex of a link to configure instead of a new TAP, or 0 */
    int ifindex;                /* out */
    char note[HC_NOTE_SIZE];    /* out */
};

static void tap_messages(struct hc_nl *n, const struct hc_tap *t)
{
    link_begin(n, t->ifindex, 0);
    nl_attr_u32(n, IFLA_GROUP, t->group);
    if (t->alias[0])
        nl_attr(n, IFLA_IFALIAS, t->alias, strlen(t->alias));
    if (t->mtu)
        nl_attr_u32(n, IFLA_MTU, t->mtu);
    if (t->mac)
        nl_attr(n, IFLA_ADDRESS, t->mac, ETH_ALEN);
    nl_nest(n, IFLA_AF_SPEC);
    link_no_address_generation(n);
    if (t->address4)
        link_routed(n, t->route_localnet);
    nl_unnest(n);
    nl_end(n);
    if (t->address4)
        address_add(n, t->ifindex, AF_INET, t->address4, t->prefix4);
    if (t->address6)
        address_add(n, t->ifindex, AF_INET6, t->address6, t->prefix6);
    if (t->master) {
        link_begin(n, t->ifindex, 0);
        nl_attr_u32(n, IFLA_MASTER, t->master);
        nl_end(n);
    }
    if (t->redirect_to) {
        ingress_add(n, t->ifindex);
        redirect_add(n, t->ifindex, t->redirect_to);
        ingress_add(n, t->redirect_to);
        redirect_add(n, t->redirect_to, t->ifindex);
    }
    link_begin(n, t->ifindex, IFF_UP);
    nl_end(n);
    /* A device that is down forgets its neighbours, so these come last. */
    if (t->neighbour4)
        neighbour_add(n, t->ifindex, AF_INET, t->neighbour4, t->neighbour_mac);
    if (t->neighbour6)
        neighbour_add(n, t->ifindex, AF_INET6, t->neighbour6, t->neighbour_mac);
}

static int tap_index(int nl_fd, const char *name)
{
    struct ifreq r;
    memset(&r, 0, sizeof r);
    strncpy(r.ifr_name, name, IFNAMSIZ - 1);
    return ioctl(nl_fd, SIOCGIFINDEX, &r) < 0 ? -errno : r.ifr_ifindex;
}

static int tap_open(int tun_fd, const struct hc_tap *t)
{
    int header = HC_VNET_HDR_SIZE;
    struct ifreq r;
    memset(&r, 0, sizeof r);
    strncpy(r.ifr_name, t->name, IFNAMSIZ - 1);
    r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL;
    if (ioctl(tun_fd, TUNSETIFF, &r) < 0)
        return -errno;
    if (ioctl(tun_fd, TUNSETVNETHDRSZ, &header) < 0)
        return -errno;
    if (t->owner >= 0 && ioctl(tun_fd, TUNSETOWNER, (unsigned long)t->owner) < 0)
        return -errno;
    return 0;
}

/* fd of a new TAP that is up and configured, or -errno and nothing is left. 0 for a link that was
 * there already. */
static int tap_create(struct hc_tap *t)
{
    union { struct nlmsghdr align; char bytes[4096]; } out;
    struct hc_open o;
    struct hc_nl n;
    int err = open_sockets(&o, t->netns_fd, NETLINK_ROUTE, !t->existing);
    if (err < 0)
        return err;
    t->ifindex = t->existing;
    if (!t->existing)
        err = tap_open(o.tun_fd, t);
    if (!err && !t->existing) {
        t->ifindex = tap_index(o.nl_fd, t->name);
        err = t->ifindex < 0 ? t->ifindex : 0;
    }
    if (!err) {
        nl_init(&n, out.bytes, sizeof out);
        tap_messages(&n, t);
        err = nl_commit(&n, o.nl_fd);
        memcpy(t->note, n.note, sizeof t->note);
    }
    if (!err && t->persist && ioctl(o.tun_fd, TUNSETPERSIST, 1UL) < 0)
        err = -errno;
    close(o.nl_fd);
    if (t->existing)
        return err;
    if (!err)
        return o.tun_fd;
    close(o.tun_fd);
    return err;
}

/* -- nf_tables -- */

static void nft_begin(struct hc_nl *n, int type, int flags, int family)
{
    struct nfgenmsg g = {.nfgen_family = family, .version = NFNETLINK_V0};
    nl_begin(n, NFNL_SUBSYS_NFTABLES << 8 | type, flags, &g, sizeof g);
}

static void nft_batch(struct hc_nl *n, int type)
{
    struct nfgenmsg g = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0,
                         .res_id = htons(NFNL_SUBSYS_NFTABLES)};
    nl_begin(n, type, 0, &g, sizeof g);
    nl_end(n);
}

static void nft_value(struct hc_nl *n, int type, const void *data, size_t size)
{
    nl_nest(n, type | NLA_F_NESTED);
    nl_attr(n, NFTA_DATA_VALUE, data, size);
    nl_unnest(n);
}

static void nft_element(struct hc_nl *n, int add, int ack, int family, const char *table,
                        const char *set, const void *key, size_t key_size, const void *extra,
                        size_t extra_size, const void *data, size_t data_size,
                        const void *userdata, size_t userdata_size)
{
    int flags = (ack ? NLM_F_ACK : 0) | (add ? NLM_F_CREATE : 0);
    nft_begin(n, add ? NFT_MSG_NEWSETELEM : NFT_MSG_DELSETELEM, flags, family);
    nl_attr_str(n, NFTA_SET_ELEM_LIST_TABLE, table);
    nl_attr_str(n, NFTA_SET_ELEM_LIST_SET, set);
    nl_nest(n, NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED);
    nl_nest(n, NFTA_LIST_ELEM | NLA_F_NESTED);
    nft_value(n, NFTA_SET_ELEM_KEY, key, key_size);
    nl_attributes(n, extra, extra_size);
    if (data)
        nft_value(n, NFTA_SET_ELEM_DATA, data, data_size);
    if (add && userdata_size)
        nl_attr(n, NFTA_SET_ELEM_USERDATA, userdata, userdata_size);
    nl_unnest(n);
    nl_unnest(n);
    nl_end(n);
}

static int nft_commit(struct hc_nl *n)
{
    int err, fd = kept_acquire();
    if (fd < 0)
        return fd;
    err = nl_commit(n, fd);
    kept_release(n->broken);
    return err;
}

#endif
