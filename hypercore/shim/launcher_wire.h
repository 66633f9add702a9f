/* The few protobuf and ttrpc bytes the launcher reads and writes. No sockets, no policy. */
#ifndef HYPERCORE_LAUNCHER_WIRE_H
#define HYPERCORE_LAUNCHER_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define MAX_ID 400

static bool take_varint(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; *at < end && shift < 70; shift += 7) {
        uint8_t byte = *(*at)++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

static bool is_text(const uint8_t *at, uint64_t size, const char *text)
{
    return size == strlen(text) && memcmp(at, text, size) == 0;
}

/* Whether stdin is a BootstrapParams of this container (containerd 2.3 and later) and not an Any
 * with runtime options: both parse as protobuf, so its id and namespace must be ours. */
static bool is_bootstrap(const uint8_t *data, size_t size, const char *own_id,
                         const char *own_namespace, char *ttrpc, size_t ttrpc_size)
{
    const uint8_t *at = data, *end = data + size;
    bool id = false, namespace = false;
    *ttrpc = 0;
    while (at < end) {
        uint64_t key, value;
        if (!take_varint(&at, end, &key) || !take_varint(&at, end, &value))
            return false;
        if ((key & 7) == 0)
            continue;
        if ((key & 7) != 2 || value > (uint64_t)(end - at))
            return false;
        if (key >> 3 == 1)
            id = is_text(at, value, own_id);
        if (key >> 3 == 2)
            namespace = is_text(at, value, own_namespace);
        if (key >> 3 == 5 && value < ttrpc_size) {
            memcpy(ttrpc, at, value);
            ttrpc[value] = 0;
        }
        at += value;
    }
    return id && namespace;
}

static uint8_t *put_bytes(uint8_t *p, int number, const void *data, size_t size)
{
    *p++ = number << 3 | 2;
    for (size_t n = size;;) {
        *p = n & 0x7f;
        n >>= 7;
        if (!n)
            break;
        *p++ |= 0x80;
    }
    p++;
    memcpy(p, data, size);
    return p + size;
}

static uint8_t *put_text(uint8_t *p, int number, const char *text)
{
    return put_bytes(p, number, text, strlen(text));
}

/* One ttrpc call, hypercore.shim.v1.Launcher/Register{1 id}, into `frame` of 1024 bytes; returns
 * its size. */
static size_t registration(uint8_t *frame, const char *id)
{
    uint8_t payload[MAX_ID + 8];
    size_t payload_size = put_text(payload, 1, id) - payload;
    uint8_t *p = put_text(frame + 10, 1, "hypercore.shim.v1.Launcher");
    p = put_text(p, 2, "Register");
    p = put_bytes(p, 3, payload, payload_size);
    uint32_t size = p - frame - 10;
    uint8_t header[10] = {size >> 24, size >> 16, size >> 8, size, 0, 0, 0, 1, 1, 0};
    memcpy(frame, header, sizeof header);
    return p - frame;
}

/* Read Response{1 Status{1 code, 2 message}}; false when it is none. */
static bool read_status(const uint8_t *body, size_t size, uint64_t *code, const char **text,
                        int *length)
{
    const uint8_t *at = body + 1, *end = body + size;
    uint64_t status_size, text_size;
    *text = "";
    *length = 0;
    if (size == 0 || body[0] != 0x0a || !take_varint(&at, end, &status_size) || at >= end ||
        *at++ != 0x08 || !take_varint(&at, end, code))
        return false;
    if (at < end && *at++ == 0x12 && take_varint(&at, end, &text_size) &&
        text_size <= (uint64_t)(end - at)) {
        *text = (const char *)at;
        *length = text_size;
    }
    return true;
}

#endif
