#define _GNU_SOURCE
#include "messages.h"

#include <stdio.h>
#include <string.h>

#include "common.h"

enum {
    STAMP_DIGITS = 16,            /* microseconds of the monotonic clock, zero-padded */
    SLACK = 1024,
};

/* The sending time travels in each message, so a delivery's latency needs no table of messages. */
#define JSON_STAMP "\"bt\":\""
#define PACKED_STAMP "\xa2" "bt" "\xb0"                       /* the texts `bt` and one of 16 bytes */

/* What a machine says on average, in messages of 100,000 s: 90 % are off, 8 % ready, 1.5 % heat up, 0.5 % brew.
 * The sizes are those of its own encoder. */
static const struct {
    const char *kind;
    size_t size;
    bool binary;
    unsigned weight;
} FLEET[] = {
    {"keepalive", 37, true, 3000},        /* off: every 30 s */
    {"status", 1175, true, 367},          /* everybody every 5 min, and around a shot */
    {"status_delta", 57, true, 4800},     /* ready: power */
    {"status_delta", 113, true, 2400},    /* ready: temperatures */
    {"status_delta", 170, true, 2250},    /* heating: both */
    {"status_delta", 84, true, 500},      /* brewing: pressure and weight */
    {"status_delta", 198, true, 500},     /* brewing: everything */
    {"log", 150, false, 75},
    {NULL, 0, true, 6667},                /* a ping every 15 s */
};
enum { KINDS = sizeof FLEET / sizeof *FLEET };

static struct message messages[KINDS];
static int message_count;
static unsigned all_weights;

static struct message compose_json(const char *kind, size_t size) {
    struct message message = {.bytes = allocate(size + SLACK, 1)};
    size_t capacity = size + SLACK;
    char *text = message.bytes;
    size_t length = snprintf(text, capacity,
                             "{\"type\":\"%s\"," JSON_STAMP "0000000000000000\",\"machine\":{\"state\":\"brewing\"},",
                             kind);
    if (size >= 400)
        length += snprintf(text + length, capacity - length,
                           "\"temps\":{\"brew\":93.4,\"setpoint\":93.5,\"steam\":131.2},"
                           "\"pressure\":9.02,\"power\":1340,");
    length += snprintf(text + length, capacity - length, "\"pad\":\"");
    while (length + 2 < size) text[length++] = 'x';
    length += snprintf(text + length, capacity - length, "\"}");
    message.length = length;
    message.stamp = strstr(text, JSON_STAMP) + sizeof JSON_STAMP - 1;
    return message;
}

static char *append_text(char *at, const char *text) {
    size_t length = strlen(text);
    *at++ = (char)(0xa0 | length);                            /* up to 31 bytes */
    return memcpy(at, text, length), at + length;
}

/* {"type": kind, "seq": 7, "bt": time} and padding, in as many bytes as asked for or the least that it takes. */
static struct message compose_packed(const char *kind, size_t size) {
    struct message message = {.bytes = allocate(size + SLACK, 1), .binary = true};
    char *start = message.bytes, *at = start + 1;
    at = append_text(append_text(at, "type"), kind);
    at = append_text(at, "seq");
    *at++ = 7;
    at = append_text(at, "bt");
    at = append_text(message.stamp = at, "0000000000000000");
    message.stamp++;
    size_t used = at - start, pad_head = 4 + 3;               /* "pad", and a text of 16 bits' length */
    bool padded = size >= used + pad_head;
    *start = (char)(0x80 | (padded ? 4 : 3));
    if (padded) {
        size_t pad = size - used - pad_head;
        at = append_text(at, "pad");
        *at++ = (char)0xda;
        *at++ = (char)(pad >> 8);
        *at++ = (char)pad;
        memset(at, 'x', pad);
        at += pad;
    }
    message.length = at - start;
    return message;
}

void compose_message(const char *kind, size_t size, bool binary) {
    messages[0] = binary ? compose_packed(kind, size) : compose_json(kind, size);
    message_count = 1;
}

double compose_fleet(void) {
    for (int i = 0; i < KINDS; i++) {
        if (!FLEET[i].kind) messages[i] = (struct message){.bytes = ""};
        else if (FLEET[i].binary) messages[i] = compose_packed(FLEET[i].kind, FLEET[i].size);
        else messages[i] = compose_json(FLEET[i].kind, FLEET[i].size);
        all_weights += FLEET[i].weight;
    }
    message_count = KINDS;
    return all_weights / 100000.0;
}

static int random_kind(void) {
    static uint64_t x = 0x9e3779b97f4a7c15;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    unsigned weight = (x >> 32) % all_weights;
    int kind = 0;
    while (weight >= FLEET[kind].weight) weight -= FLEET[kind++].weight;
    return kind;
}

const struct message *next_message(void) {
    struct message *message = &messages[message_count == 1 ? 0 : random_kind()];
    if (message->stamp) {
        char stamp[32];
        snprintf(stamp, sizeof stamp, "%0*.0f", STAMP_DIGITS, now_s() * 1e6);
        memcpy(message->stamp, stamp, STAMP_DIGITS);
    }
    return message;
}

double sending_time_us(const char *payload, size_t length) {
    bool is_json = length && *payload == '{';
    const char *field = is_json ? JSON_STAMP : PACKED_STAMP;
    size_t field_length = strlen(field);
    const char *found = memmem(payload, length, field, field_length);
    if (!found || found + field_length + STAMP_DIGITS > payload + length) return -1;
    char digits[STAMP_DIGITS + 1] = "";
    memcpy(digits, found + field_length, STAMP_DIGITS);
    return strtod(digits, NULL);
}
