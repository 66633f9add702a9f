/* What this runtime is and can do: the RuntimeInfo that containerd asks for with -info, and uses
 * to decide which mounts it hands over and what of a container's spec it may ask for. */
#ifndef HYPERCORE_LAUNCHER_INFO_H
#define HYPERCORE_LAUNCHER_INFO_H

#include "launcher_wire.h"

#define RUNTIME_NAME "io.containerd.hypercore.v1"
#define FEATURES_TYPE_URL \
    "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

/* features.md of the OCI runtime specification; of cgroups, the guest's. */
#define FEATURES                                                                         \
    "{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.2.0\",\"hooks\":[],"             \
    "\"mountOptions\":[\"nodev\",\"noexec\",\"nosuid\",\"relatime\",\"ro\",\"rw\","      \
    "\"strictatime\"],\"linux\":{\"namespaces\":[\"cgroup\",\"ipc\",\"mount\","          \
    "\"network\",\"pid\",\"user\",\"uts\"],\"cgroup\":{\"v1\":false,\"v2\":true,"        \
    "\"systemd\":false,\"systemdUser\":false},\"seccomp\":{\"enabled\":true},"           \
    "\"apparmor\":{\"enabled\":false},\"selinux\":{\"enabled\":false},"                  \
    "\"intelRdt\":{\"enabled\":false}}}"

/* Mounts that containerd 2.2 and later hands over as they are, instead of mounting them. */
#define ALLOW_MOUNTS_KEY "containerd.io/runtime-allow-mounts"
#define ALLOW_MOUNTS "mkdir/*,format/*,erofs"

/* RuntimeInfo{1 name, 2 version{1 version}, 4 features{1 type_url, 2 value}, 5 annotations} into
 * `out` of 2048 bytes; returns its size. */
static size_t runtime_info(uint8_t *out, const char *version)
{
    uint8_t part[1024];
    uint8_t *p = put_text(out, 1, RUNTIME_NAME);
    p = put_bytes(p, 2, part, put_text(part, 1, version) - part);
    uint8_t *end = put_text(put_text(part, 1, FEATURES_TYPE_URL), 2, FEATURES);
    p = put_bytes(p, 4, part, end - part);
    end = put_text(put_text(part, 1, ALLOW_MOUNTS_KEY), 2, ALLOW_MOUNTS);
    p = put_bytes(p, 5, part, end - part);
    return p - out;
}

#endif
