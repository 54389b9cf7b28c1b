/* WebSocket connections to the server, as a device or as an app: many of them, in one epoll set. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum opcode { OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };
enum state { UNUSED, CONNECTING, UPGRADING, OPEN, CLOSED };

struct buffer {
    unsigned char *data;
    size_t length, capacity;
};

struct connection {
    int fd;
    enum state state;
    bool is_device;
    bool wants_write;             /* epoll watches for EPOLLOUT */
    unsigned device_number;       /* its own, or the one that it is an app of */
    struct device *device;        /* for the owner's use */
    struct buffer in;             /* the beginning of a frame whose rest has not come yet */
    struct buffer out;            /* what the kernel has not taken yet */
};

/* Where all connections go, and who takes what arrives on them. */
struct target {
    int port, device_port;        /* of apps, of devices */
    const char *token, *key;      /* of all apps, of all devices */
    bool verbose;                 /* say on stderr why a connection failed */
    void (*take_message)(struct connection *connection, const char *payload, size_t length);
};

extern int open_count, failed_count;

void prepare_connections(const struct target *to);
void start_connection(struct connection *connection, int index);
void serve_events(int timeout_ms);

void append_frame(struct connection *connection, enum opcode opcode, const void *payload, size_t length);
void flush(struct connection *connection);

/* End a connection at once, with a reset: thousands of ports in TIME_WAIT would be missing in the next
 * run, and to other programs of the machine. */
void reset_connection(struct connection *connection);
