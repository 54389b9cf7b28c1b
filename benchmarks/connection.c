#define _GNU_SOURCE
#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

enum {
    MAX_EVENTS = 512,
    SCRATCH_BYTES = 256 * 1024,   /* one read, together with what was left of the read before */
    READ_ON_BYTES = 2 * 1024,     /* after a read of so much, more has probably come meanwhile */
    REQUEST_BYTES = 8 * 1024,
    PER_SOURCE_ADDRESS = 20000,   /* connections from one loopback address: it has some 28,000 ports */
};

/* The sample nonce of RFC 6455, section 1.3, and the answer that belongs to it. */
#define NONCE "dGhlIHNhbXBsZSBub25jZQ=="
#define NONCE_ANSWER "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

static struct target target;
static int epoll_fd;
int open_count, failed_count;

static unsigned char *extend(struct buffer *buffer, size_t bytes) {
    if (buffer->length + bytes > buffer->capacity) {
        buffer->capacity = (buffer->length + bytes) * 2;
        buffer->data = realloc(buffer->data, buffer->capacity);
        if (!buffer->data) fail("out of memory");
    }
    unsigned char *room = buffer->data + buffer->length;
    buffer->length += bytes;
    return room;
}

static uint32_t next_mask(void) {
    static uint32_t x = 0x9e3779b9;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return x;
}

static void give_up(struct connection *connection, const char *why) {
    if (connection->state == CLOSED) return;
    if (target.verbose)
        fprintf(stderr, "load: %s BRW-%08X: %s\n", connection->is_device ? "device" : "app of",
                connection->device_number, why);
    if (connection->state == OPEN) open_count--;
    failed_count++;
    connection->state = CLOSED;
    close(connection->fd);                                    /* leaves the epoll set by itself */
}

static void watch(struct connection *connection, int operation, bool wants_write) {
    struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0), .data.ptr = connection};
    if (epoll_ctl(epoll_fd, operation, connection->fd, &event) < 0) fail("epoll_ctl: %s", strerror(errno));
    connection->wants_write = wants_write;
}

void flush(struct connection *connection) {
    struct buffer *out = &connection->out;
    size_t sent = 0;
    while (sent < out->length) {
        ssize_t n = send(connection->fd, out->data + sent, out->length - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            give_up(connection, strerror(errno));
            return;
        }
        sent += n;
    }
    if (sent < out->length) memmove(out->data, out->data + sent, out->length - sent);
    out->length -= sent;
    if (connection->wants_write != (out->length > 0)) watch(connection, EPOLL_CTL_MOD, out->length > 0);
}

/* Append one masked frame to what is waiting to be sent (RFC 6455, sections 5.2 and 5.3). */
void append_frame(struct connection *connection, enum opcode opcode, const void *payload, size_t length) {
    size_t head_length = length < 126 ? 2 : length < 65536 ? 4 : 10;
    unsigned char *frame = extend(&connection->out, head_length + 4 + length);
    frame[0] = 0x80 | opcode;
    frame[1] = 0x80 | (length < 126 ? length : length < 65536 ? 126 : 127);
    for (size_t i = 2; i < head_length; i++) frame[i] = (uint64_t)length >> (8 * (head_length - 1 - i));

    unsigned char *mask = frame + head_length, *body = mask + 4;
    const unsigned char *from = payload;
    uint32_t random = next_mask();
    memcpy(mask, &random, 4);
    for (size_t i = 0; i < length; i++) body[i] = from[i] ^ mask[i & 3];
}

static void take_frame(struct connection *connection, unsigned char first, const unsigned char *payload,
                       size_t length) {
    switch (first) {
    case 0x80 | OP_TEXT:
    case 0x80 | OP_BINARY:
        target.take_message(connection, (const char *)payload, length);
        break;
    case 0x80 | OP_PING:
        append_frame(connection, OP_PONG, payload, length);
        flush(connection);
        break;
    case 0x80 | OP_PONG:
        break;
    case 0x80 | OP_CLOSE: {
        char why[160];
        int code = length >= 2 ? payload[0] << 8 | payload[1] : 1005;
        snprintf(why, sizeof why, "closed by the server: %d %.*s", code, length > 2 ? (int)length - 2 : 0,
                 length > 2 ? (const char *)payload + 2 : "");
        give_up(connection, why);
        break;
    }
    default:
        give_up(connection, "a frame that no server should send: a fragment, or reserved bits");
    }
}

/* Take every complete frame in the bytes; return how many bytes that was. */
static size_t take_frames(struct connection *connection, const unsigned char *bytes, size_t length) {
    size_t used = 0;
    while (connection->state == OPEN && length - used >= 2) {
        const unsigned char *head = bytes + used;
        size_t head_length = head[1] < 126 ? 2 : head[1] == 126 ? 4 : 10;
        uint64_t payload_length = head[1];
        if (head[1] > 127) {
            give_up(connection, "a masked frame from the server");
            break;
        }
        if (length - used < head_length) break;
        if (head_length > 2) payload_length = 0;
        for (size_t i = 2; i < head_length; i++) payload_length = payload_length << 8 | head[i];
        if (payload_length > SCRATCH_BYTES / 2) {
            give_up(connection, "a frame longer than this program reads");
            break;
        }
        if (length - used < head_length + payload_length) break;
        take_frame(connection, head[0], head + head_length, payload_length);
        used += head_length + payload_length;
    }
    return used;
}

/* Take the answer to the upgrade; return how many bytes it had, 0 while it is not complete. */
static size_t take_upgrade(struct connection *connection, const unsigned char *bytes, size_t length) {
    const char *text = (const char *)bytes;
    const char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head_length = end + 4 - text;
    if (strncmp(text, "HTTP/1.1 101", 12) || !memmem(text, head_length, NONCE_ANSWER, sizeof NONCE_ANSWER - 1)) {
        char why[80];
        snprintf(why, sizeof why, "refused: %.*s", (int)strcspn(text, "\r"), text);
        give_up(connection, why);
        return 0;
    }
    connection->state = OPEN;
    open_count++;
    return head_length;
}

/* Read once and take what is complete; return how many bytes came, 0 when there was nothing. */
static size_t read_once(struct connection *connection) {
    static unsigned char scratch[SCRATCH_BYTES];
    size_t kept = connection->in.length;
    if (kept) memcpy(scratch, connection->in.data, kept);
    ssize_t n = recv(connection->fd, scratch + kept, sizeof scratch - kept, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) {
        give_up(connection, n ? strerror(errno) : "the server ended the connection");
        return 0;
    }
    size_t length = kept + n, used = 0;
    if (connection->state == UPGRADING) used = take_upgrade(connection, scratch, length);
    if (connection->state == OPEN) used += take_frames(connection, scratch + used, length - used);
    connection->in.length = 0;
    if (connection->state != CLOSED && used < length)
        memcpy(extend(&connection->in, length - used), scratch + used, length - used);
    return n;
}

static void read_connection(struct connection *connection) {
    while (read_once(connection) >= READ_ON_BYTES && connection->state != CLOSED) continue;
}

void start_connection(struct connection *connection, int index) {
    int on = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        fail("cannot open connection %d: %s; raise the limit of open files (ulimit -n)", index, strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(connection->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    /* Each run has source addresses of its own: those of the run before still wait for stray packets. */
    uint32_t offset = (uint32_t)(getpid() & 0xffff) * 16 + index / PER_SOURCE_ADDRESS;
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + offset)};
    if (bind(connection->fd, (struct sockaddr *)&source, sizeof source) < 0) fail("bind: %s", strerror(errno));

    int port = connection->is_device ? target.device_port : target.port;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(connection->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        fail("cannot connect to port %d: %s%s", port, strerror(errno),
             errno == EADDRNOTAVAIL ? "; other programs have used up the ports: wait a minute" : "");
    connection->state = CONNECTING;
    watch(connection, EPOLL_CTL_ADD, true);

    char request[REQUEST_BYTES], path[REQUEST_BYTES / 2];
    if (connection->is_device)
        snprintf(path, sizeof path, "/ws/device?id=BRW-%08X&key=%s", connection->device_number, target.key);
    else
        snprintf(path, sizeof path, "/ws/client?token=%s&device=BRW-%08X", target.token,
                 connection->device_number);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: " NONCE "\r\nSec-WebSocket-Version: 13\r\n\r\n",
                          path, port);
    memcpy(extend(&connection->out, length), request, length);
}

static void serve_event(struct connection *connection, uint32_t events) {
    if (connection->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            give_up(connection, strerror(error));
            return;
        }
        connection->state = UPGRADING;
    }
    if (events & EPOLLOUT && connection->state != CLOSED) flush(connection);
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP) && connection->state != CLOSED) read_connection(connection);
}

void serve_events(int timeout_ms) {
    struct epoll_event events[MAX_EVENTS];
    int count = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        if (connection->state != CLOSED) serve_event(connection, events[i].events);
    }
}

void prepare_connections(const struct target *to) {
    target = *to;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) fail("epoll_create1: %s", strerror(errno));
}

void reset_connection(struct connection *connection) {
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    if (connection->state == CLOSED) return;
    setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(connection->fd);
    connection->state = CLOSED;
}
