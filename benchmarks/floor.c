/* floor: the least that a relay of WebSocket frames can cost.
 *
 *   floor PORT
 *
 * One thread and one epoll set, on the loopback interface. A device's messages go to all apps that
 * named its id, an app's messages to the device. It looks at no payload, checks no key and no token
 * and keeps no state about a message, so what is left is the work of the kernel and of the frame
 * headers: the yardstick that the relay's figures are divided by. It is no relay to be used.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 128 * 1024,
    MAX_FRAME_BYTES = 64 * 1024,  /* a longer frame, or request, ends its connection */
    MAX_EVENTS = 256,
    TABLE_SLOTS = 1 << 16,
    ID_BYTES = 32,
};

/* The answer to the sample nonce of RFC 6455, section 1.3, which is the one that `load` sends. */
static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\n"
                             "Upgrade: websocket\r\n"
                             "Connection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

struct peer {
    int fd;
    bool upgraded, is_device;
    struct session *session;
    int place;                    /* in session->apps */
    unsigned char *rest;          /* the beginning of a frame whose end has not come yet */
    size_t rest_length;
};

struct session {
    char id[ID_BYTES];
    struct peer *device;
    struct peer **apps;
    int app_count, app_capacity;
    struct session *next;         /* in the same slot of the table */
};

static struct session *table[TABLE_SLOTS];

static void *checked(void *memory) {
    if (!memory) {
        fputs("floor: out of memory\n", stderr);
        exit(2);
    }
    return memory;
}

static void check(bool fine, const char *what) {
    if (fine) return;
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(2);
}

static struct session *find_session(const char *id) {
    uint32_t hash = 2166136261u;                              /* FNV-1a */
    for (const char *c = id; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    struct session **slot = &table[hash % TABLE_SLOTS];
    for (struct session *session = *slot; session; session = session->next)
        if (!strcmp(session->id, id)) return session;
    struct session *session = checked(calloc(1, sizeof *session));
    snprintf(session->id, sizeof session->id, "%s", id);
    session->next = *slot;
    return *slot = session;
}

static void join(struct peer *peer, const char *id) {
    struct session *session = peer->session = find_session(id);
    if (peer->is_device) {
        session->device = peer;
        return;
    }
    if (session->app_count == session->app_capacity) {
        session->app_capacity = session->app_capacity * 2 + 2;
        session->apps = checked(realloc(session->apps, session->app_capacity * sizeof *session->apps));
    }
    peer->place = session->app_count++;
    session->apps[peer->place] = peer;
}

static void leave(struct peer *peer) {
    struct session *session = peer->session;
    if (!session) return;
    if (!peer->is_device) {
        struct peer *last = session->apps[--session->app_count];
        session->apps[peer->place] = last;
        last->place = peer->place;
    } else if (session->device == peer) {
        session->device = NULL;
    }
}

static void end(struct peer *peer) {
    leave(peer);
    close(peer->fd);
    free(peer->rest);
    free(peer);
}

/* Write to one peer. One that does not keep up is shut down, and ended when epoll says so: the
 * workloads bound what is in flight, and a floor has no outbox. */
static void deliver(struct peer *peer, const void *bytes, size_t length) {
    ssize_t sent = send(peer->fd, bytes, length, MSG_NOSIGNAL);
    if (sent != (ssize_t)length) shutdown(peer->fd, SHUT_RDWR);
}

/* Answer the request once it is complete; return false when it names no device. */
static bool upgrade(struct peer *peer, char *request) {
    if (!strstr(request, "\r\n\r\n")) return true;
    char id[ID_BYTES] = "", *found;
    if ((found = strstr(request, "?id="))) {
        peer->is_device = true;
        sscanf(found, "?id=%31[^& ]", id);
    } else if ((found = strstr(request, "device="))) {
        sscanf(found, "device=%31[^& ]", id);
    }
    if (!*id) return false;
    join(peer, id);
    peer->upgraded = true;
    deliver(peer, ANSWER, sizeof ANSWER - 1);
    return true;
}

/* Relay every complete frame in the bytes, in one write to each receiver.
 *
 * Return how many bytes those frames had, or -1 for a frame that this program does not take. */
static ssize_t relay(struct peer *peer, const unsigned char *bytes, size_t length) {
    static unsigned char out[BUFFER_BYTES];
    size_t used = 0, filled = 0;
    while (length - used >= 6) {
        const unsigned char *head = bytes + used;
        size_t payload_length = head[1] & 0x7f, head_length = 2;
        if (!(head[1] & 0x80) || payload_length == 127) return -1;
        if (payload_length == 126) {
            payload_length = head[2] << 8 | head[3];
            head_length = 4;
        }
        size_t frame_length = head_length + 4 + payload_length;
        if (length - used < frame_length) break;
        used += frame_length;
        if (head[0] & 0x08) continue;                         /* pings, pongs and close frames go nowhere */

        const unsigned char *mask = head + head_length, *payload = mask + 4;
        memcpy(out + filled, head, head_length);
        out[filled + 1] &= 0x7f;
        filled += head_length;
        for (size_t i = 0; i < payload_length; i++) out[filled + i] = payload[i] ^ mask[i & 3];
        filled += payload_length;
    }
    if (!filled) return used;
    struct session *session = peer->session;
    if (!peer->is_device) {
        if (session->device) deliver(session->device, out, filled);
        return used;
    }
    for (int i = 0; i < session->app_count; i++) deliver(session->apps[i], out, filled);
    return used;
}

static void read_peer(struct peer *peer) {
    static unsigned char in[BUFFER_BYTES + 1];
    size_t kept = peer->rest_length;
    if (kept) memcpy(in, peer->rest, kept);
    ssize_t n = recv(peer->fd, in + kept, BUFFER_BYTES - kept, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        end(peer);
        return;
    }
    size_t length = kept + n;
    ssize_t used;
    if (peer->upgraded) {
        used = relay(peer, in, length);
    } else {
        in[length] = 0;
        used = !upgrade(peer, (char *)in) ? -1 : peer->upgraded ? (ssize_t)length : 0;
    }
    size_t rest = length - used;
    if (used < 0 || rest > MAX_FRAME_BYTES + 16) {
        end(peer);
        return;
    }
    peer->rest_length = rest;
    if (rest) {
        peer->rest = checked(realloc(peer->rest, rest));
        memcpy(peer->rest, in + used, rest);
    } else if (kept) {
        free(peer->rest);
        peer->rest = NULL;
    }
}

static void accept_peers(int listener, int epoll_fd) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct peer *peer = checked(calloc(1, sizeof *peer));
        peer->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        check(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
    }
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    check(listener >= 0, "socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(!bind(listener, (struct sockaddr *)&address, sizeof address), "bind");
    check(!listen(listener, 4096), "listen");
    return listener;
}

int main(int argc, char **argv) {
    int port = argc == 2 ? atoi(argv[1]) : 0;
    if (port < 1 || port > 65535) {
        fputs("usage: floor PORT\n", stderr);
        return 2;
    }
    int listener = listen_on(port), epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[MAX_EVENTS] = {{.events = EPOLLIN, .data.ptr = NULL}};
    check(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &events[0]), "epoll_ctl");
    printf("floor: listening on 127.0.0.1:%d\n", port);
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;          /* a peer is ended by its own event only */
            if (peer)
                read_peer(peer);
            else
                accept_peers(listener, epoll_fd);
        }
    }
}
