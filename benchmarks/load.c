/* load: a WebSocket load generator for a relay between devices and their apps.
 *
 *   load MODE --port P [--devices D] [--apps K] [--token JWT] [--key KEY] [--pid PID]...
 *
 * It opens D device connections and K app connections for each of them, drives one workload over
 * all of them from one thread, and prints one line of JSON:
 *
 *   fanout    each device keeps --window messages in flight; one is over when as many deliveries
 *             as the device has apps came back (saturation)
 *   rate      each device sends --rate messages a second, evenly spread (latency at a given load)
 *   command   each app keeps --window messages in flight to its device
 *   idle      connect, hold for --secs, read the server's memory
 *   storm     connect as fast as the server accepts, --concurrency attempts at a time
 *
 * What the server spends is read from /proc for each --pid: CPU time (user and system) and
 * proportional memory. CPU time for each delivery is a property of the server, where deliveries
 * per second also depend on who else uses the machine.
 *
 * Exit status: 0 when every connection held, 1 when one failed, 2 for a usage or system error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_PIDS = 64,
    MAX_EVENTS = 512,
    SCRATCH_BYTES = 256 * 1024,   /* one read, together with what was left of the read before */
    READ_ON_BYTES = 2 * 1024,     /* after a read of so much, more has probably come meanwhile */
    REQUEST_BYTES = 8 * 1024,
    STAMP_DIGITS = 16,            /* microseconds of the monotonic clock, zero-padded */
    PER_SOURCE_ADDRESS = 20000,   /* connections from one loopback address: it has some 28,000 ports */
    CONNECT_TIMEOUT_S = 120,
};

/* The sample nonce of RFC 6455, section 1.3, and the answer that belongs to it. */
#define NONCE "dGhlIHNhbXBsZSBub25jZQ=="
#define NONCE_ANSWER "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

/* The sending time travels in each message, so a delivery's latency needs no table of messages. */
#define STAMP_FIELD "\"bt\":\""

enum opcode { OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10 };
enum mode { FANOUT, RATE, COMMAND, IDLE, STORM, MODES };
static const char *const MODE_NAMES[MODES] = {"fanout", "rate", "command", "idle", "storm"};

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
    struct device *device;
    struct buffer in;             /* the beginning of a frame whose rest has not come yet */
    struct buffer out;            /* what the kernel has not taken yet */
};

struct device {
    unsigned number;
    struct connection *socket;
    struct connection *apps;      /* `options.apps` of them */
    int deliveries;               /* fanout: deliveries counted towards the message that is over next */
    unsigned commands;            /* command: deliveries so far; says which app sends next */
};

static struct {
    enum mode mode;
    int port, devices, apps, window, size, concurrency, first_device;
    double rate_hz, measure_s, warmup_s, settle_s;
    const char *token, *key;
    bool binary, verbose;
    int pids[MAX_PIDS], pid_count;
} options = {
    .port = 3001, .devices = 1, .apps = 1, .window = 1, .size = 600, .concurrency = 64,
    .first_device = 0x100, .rate_hz = 1, .measure_s = 5, .warmup_s = 1, .settle_s = 0.5,
    .token = "", .key = "",
};

static int epoll_fd;
static struct device *devices;
static struct connection *connections;    /* all devices, then all apps */
static int connection_count, open_count, failed_count;
static bool driving;                      /* deliveries are answered with new messages */
static bool measuring;                    /* deliveries are counted */

static struct {
    char *text;
    size_t length;
    char *stamp;
} message;

/* ---- Small things ---------------------------------------------------------------------------- */

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(2);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) fail("out of memory");
    return memory;
}

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

/* ---- Latencies ------------------------------------------------------------------------------- */

/* Buckets of 1 µs up to 64 µs, then 32 to each doubling: no percentile is off by more than 3 %. */
enum { FINE = 64, STEPS = 32, BUCKETS = FINE + STEPS * 58 };
static struct {
    uint64_t buckets[BUCKETS];
    uint64_t count, bytes, longest_us;
} latencies;

static void count_delivery(uint64_t us, size_t bytes) {
    size_t bucket = us;
    if (us >= FINE) {
        int doubling = 63 - __builtin_clzll(us);              /* 6 or more */
        bucket = FINE + (size_t)(doubling - 6) * STEPS + ((us >> (doubling - 5)) & (STEPS - 1));
    }
    latencies.buckets[bucket]++;
    latencies.count++;
    latencies.bytes += bytes;
    if (us > latencies.longest_us) latencies.longest_us = us;
}

static uint64_t percentile_us(double share) {
    uint64_t wanted = (uint64_t)(share * latencies.count), seen = 0;
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += latencies.buckets[bucket];
        if (seen <= wanted) continue;
        if (bucket < FINE) return bucket;
        size_t doubling = (bucket - FINE) / STEPS + 6, step = (bucket - FINE) % STEPS;
        return (uint64_t)(STEPS + step) << (doubling - 5);
    }
    return latencies.longest_us;
}

/* ---- What the server spends ------------------------------------------------------------------ */

/* Return the CPU time of one process and all of its threads, or 0 when it is gone (proc(5)). */
static double cpu_of_pid_s(int pid) {
    char path[64], text[2048];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    char *after_name = strrchr(text, ')');                    /* the name may hold anything */
    unsigned long user, system;
    if (!after_name || sscanf(after_name + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu %lu",
                              &user, &system) != 2)
        return 0;
    return (double)(user + system) / sysconf(_SC_CLK_TCK);
}

/* Return the proportional memory of one process in KiB, or 0 when it cannot be read. */
static long pss_of_pid_kib(int pid) {
    char path[64], line[256];
    long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "Pss: %ld kB", &kib) == 1) break;
    fclose(file);
    return kib;
}

static double server_cpu_s(void) {
    double sum = 0;
    for (int i = 0; i < options.pid_count; i++) sum += cpu_of_pid_s(options.pids[i]);
    return sum;
}

static long server_pss_kib(void) {
    long sum = 0;
    for (int i = 0; i < options.pid_count; i++) sum += pss_of_pid_kib(options.pids[i]);
    return sum;
}

/* ---- Sending --------------------------------------------------------------------------------- */

static void give_up(struct connection *connection, const char *why) {
    if (connection->state == CLOSED) return;
    if (options.verbose)
        fprintf(stderr, "load: %s BRW-%08X: %s\n", connection->is_device ? "device" : "app of",
                connection->device->number, why);
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

static void flush(struct connection *connection) {
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
static void append_frame(struct connection *connection, enum opcode opcode, const void *payload, size_t length) {
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

/* Send one message at once: a write for each message, as separate devices and apps would do. */
static void send_message(struct connection *connection) {
    if (connection->state != OPEN) return;
    char stamp[32];
    snprintf(stamp, sizeof stamp, "%0*.0f", STAMP_DIGITS, now_s() * 1e6);
    memcpy(message.stamp, stamp, STAMP_DIGITS);
    append_frame(connection, options.binary ? OP_BINARY : OP_TEXT, message.text, message.length);
    if (!connection->wants_write) flush(connection);
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* Count a delivery, and keep the window full. Whatever carries no stamp is the relay's own talk. */
static void take_message(struct connection *connection, const char *payload, size_t length) {
    const size_t field_length = sizeof STAMP_FIELD - 1;
    const char *field = memmem(payload, length, STAMP_FIELD, field_length);
    if (!field || field + field_length + STAMP_DIGITS > payload + length) return;
    if (measuring) {
        double latency_us = now_s() * 1e6 - strtod(field + field_length, NULL);
        count_delivery(latency_us < 0 ? 0 : (uint64_t)latency_us, length);
    }
    if (!driving) return;

    struct device *device = connection->device;
    if (options.mode == FANOUT && !connection->is_device && ++device->deliveries >= options.apps) {
        device->deliveries -= options.apps;
        send_message(device->socket);
    } else if (options.mode == COMMAND && connection->is_device) {
        send_message(&device->apps[device->commands++ % options.apps]);
    }
}

static void take_frame(struct connection *connection, unsigned char first, const unsigned char *payload,
                       size_t length) {
    switch (first) {
    case 0x80 | OP_TEXT:
    case 0x80 | OP_BINARY:
        take_message(connection, (const char *)payload, length);
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

/* ---- The loop -------------------------------------------------------------------------------- */

static void start_connection(struct connection *connection, int index) {
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

    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(options.port)};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(connection->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        fail("cannot connect to port %d: %s", options.port, strerror(errno));
    connection->state = CONNECTING;
    watch(connection, EPOLL_CTL_ADD, true);

    char request[REQUEST_BYTES], target[REQUEST_BYTES / 2];
    if (connection->is_device)
        snprintf(target, sizeof target, "/ws/device?id=BRW-%08X&key=%s", connection->device->number, options.key);
    else
        snprintf(target, sizeof target, "/ws/client?token=%s&device=BRW-%08X", options.token,
                 connection->device->number);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: " NONCE "\r\nSec-WebSocket-Version: 13\r\n\r\n",
                          target, options.port);
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

static void serve_events(int timeout_ms) {
    struct epoll_event events[MAX_EVENTS];
    int count = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        if (connection->state != CLOSED) serve_event(connection, events[i].events);
    }
}

static void serve_for(double seconds) {
    double end_s = now_s() + seconds;
    while (now_s() < end_s) serve_events(20);
}

static void connect_all(void) {
    double deadline_s = now_s() + CONNECT_TIMEOUT_S;
    int started = 0;
    while (open_count + failed_count < connection_count) {
        for (; started < connection_count && started - open_count - failed_count < options.concurrency; started++)
            start_connection(&connections[started], started);
        serve_events(100);
        if (now_s() > deadline_s)
            fail("%d of %d connections were open after %d s", open_count, connection_count, CONNECT_TIMEOUT_S);
    }
}

/* End every connection at once, with a reset: thousands of ports in TIME_WAIT would be missing in the
 * next run, and to whoever else is on the machine. */
static void disconnect_all(void) {
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    for (int i = 0; i < connection_count; i++) {
        if (connections[i].state == CLOSED) continue;
        setsockopt(connections[i].fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(connections[i].fd);
    }
}

/* Fill every window; deliveries keep them full from here on. */
static void fill_windows(void) {
    for (int i = 0; i < options.devices; i++)
        for (int w = 0; w < options.window; w++) {
            if (options.mode == FANOUT) send_message(devices[i].socket);
            for (int k = 0; options.mode == COMMAND && k < options.apps; k++) send_message(&devices[i].apps[k]);
        }
}

/* Drive the workload for a while.
 *
 * The fixed rate is spread evenly over time and devices. Its loop never sleeps: a timer's
 * granularity would gather messages, and a gathered message is a wake-up that the server is spared. */
static void drive_for(double seconds) {
    static double start_s;
    static uint64_t sent;
    if (options.mode != RATE) {
        serve_for(seconds);
        return;
    }
    double all_hz = options.rate_hz * options.devices, time_s = now_s(), end_s = time_s + seconds;
    if (!start_s) start_s = time_s;
    for (; time_s < end_s; time_s = now_s()) {
        for (; start_s + sent / all_hz <= time_s; sent++) send_message(devices[sent % options.devices].socket);
        serve_events(0);
    }
}

/* ---- Set-up and report ----------------------------------------------------------------------- */

static void compose_message(void) {
    const char *kind = options.mode == COMMAND ? "command" : "status";
    size_t capacity = options.size + 1024, length;
    message.text = allocate(capacity, 1);
    length = snprintf(message.text, capacity,
                      "{\"type\":\"%s\"," STAMP_FIELD "0000000000000000\",\"machine\":{\"state\":\"brewing\"},", kind);
    if (options.size >= 400)
        length += snprintf(message.text + length, capacity - length,
                           "\"temps\":{\"brew\":93.4,\"setpoint\":93.5,\"steam\":131.2},"
                           "\"pressure\":9.02,\"power\":1340,");
    length += snprintf(message.text + length, capacity - length, "\"pad\":\"");
    while (length + 2 < (size_t)options.size) message.text[length++] = 'x';
    length += snprintf(message.text + length, capacity - length, "\"}");
    message.length = length;
    message.stamp = strstr(message.text, STAMP_FIELD) + sizeof STAMP_FIELD - 1;
}

static void lay_out_connections(void) {
    connection_count = options.devices * (options.apps + 1);
    connections = allocate(connection_count, sizeof *connections);
    devices = allocate(options.devices, sizeof *devices);
    for (int i = 0; i < options.devices; i++) {
        struct device *device = &devices[i];
        device->number = options.first_device + i;
        device->socket = &connections[i];
        device->socket->is_device = true;
        device->socket->device = device;
        device->apps = &connections[options.devices + i * options.apps];
        for (int k = 0; k < options.apps; k++) device->apps[k].device = device;
    }
}

static void raise_open_files(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static long whole_number(const char *option, const char *text, long least) {
    char *end;
    long value = strtol(text, &end, 0);
    if (*end || end == text || value < least) fail("--%s takes a whole number from %ld on, not '%s'", option, least, text);
    return value;
}

static double positive_number(const char *option, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= 0)) fail("--%s takes a number, not '%s'", option, text);
    return value;
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},   {"devices", 1, 0, 'd'}, {"apps", 1, 0, 'a'},   {"window", 1, 0, 'w'},
        {"rate", 1, 0, 'r'},   {"size", 1, 0, 's'},    {"secs", 1, 0, 't'},   {"warm", 1, 0, 'u'},
        {"settle", 1, 0, 'e'}, {"token", 1, 0, 'j'},   {"key", 1, 0, 'k'},    {"pid", 1, 0, 'i'},
        {"base", 1, 0, 'b'},   {"binary", 0, 0, 'y'},  {"verbose", 0, 0, 'v'}, {"concurrency", 1, 0, 'c'},
        {0, 0, 0, 0},
    };
    for (int c, at = 0; (c = getopt_long(argc, argv, "", known, &at)) != -1;) {
        const char *name = known[at].name;
        switch (c) {
        case 'p': options.port = whole_number(name, optarg, 1); break;
        case 'd': options.devices = whole_number(name, optarg, 1); break;
        case 'a': options.apps = whole_number(name, optarg, 0); break;
        case 'w': options.window = whole_number(name, optarg, 1); break;
        case 'r': options.rate_hz = positive_number(name, optarg); break;
        case 's': options.size = whole_number(name, optarg, 0); break;
        case 't': options.measure_s = positive_number(name, optarg); break;
        case 'u': options.warmup_s = positive_number(name, optarg); break;
        case 'e': options.settle_s = positive_number(name, optarg); break;
        case 'j': options.token = optarg; break;
        case 'k': options.key = optarg; break;
        case 'b': options.first_device = whole_number(name, optarg, 0); break;
        case 'c': options.concurrency = whole_number(name, optarg, 1); break;
        case 'y': options.binary = true; break;
        case 'v': options.verbose = true; break;
        case 'i':
            if (options.pid_count == MAX_PIDS) fail("--pid can be given %d times", MAX_PIDS);
            options.pids[options.pid_count++] = whole_number(name, optarg, 1);
            break;
        default: exit(2);
        }
    }
    if (optind != argc - 1) fail("give one mode: fanout, rate, command, idle or storm");
    for (options.mode = 0; strcmp(MODE_NAMES[options.mode], argv[optind]);)
        if (++options.mode == MODES) fail("unknown mode '%s': fanout, rate, command, idle or storm", argv[optind]);
    if (!options.apps && (options.mode == FANOUT || options.mode == COMMAND))
        fail("%s needs at least one app for each device (--apps)", argv[optind]);
}

static void measure_connecting(void) {
    long pss_before_kib = server_pss_kib();
    double cpu_before_s = server_cpu_s(), start_s = now_s();
    connect_all();
    double connect_s = now_s() - start_s, connect_cpu_s = server_cpu_s() - cpu_before_s;
    serve_for(options.settle_s);

    double idle_cpu_before_s = server_cpu_s();
    serve_for(options.measure_s);
    double idle_cpu_s = server_cpu_s() - idle_cpu_before_s;
    long pss_kib = server_pss_kib();
    printf("{\"mode\":\"%s\",\"conns\":%d,\"failed\":%d,\"connect_s\":%.3f,\"conns_per_s\":%.0f,"
           "\"cpu_us_per_conn\":%.1f,\"pss_kib\":%ld,\"kib_per_conn\":%.2f,\"idle_cpu_pct\":%.2f}\n",
           MODE_NAMES[options.mode], open_count, failed_count, connect_s, connection_count / connect_s,
           connect_cpu_s * 1e6 / connection_count, pss_kib, (double)(pss_kib - pss_before_kib) / connection_count,
           options.measure_s > 0 ? idle_cpu_s / options.measure_s * 100 : 0);
}

static void measure_messages(void) {
    connect_all();
    serve_for(options.settle_s);
    driving = true;
    fill_windows();
    drive_for(options.warmup_s);

    double start_s = now_s(), cpu_before_s = server_cpu_s();
    measuring = true;
    drive_for(options.measure_s);
    measuring = driving = false;
    double elapsed_s = now_s() - start_s, cpu_s = server_cpu_s() - cpu_before_s;

    printf("{\"mode\":\"%s\",\"devices\":%d,\"apps\":%d,\"window\":%d,\"size\":%zu,\"open\":%d,\"failed\":%d,"
           "\"deliveries\":%llu,\"per_s\":%.0f,\"MiB_per_s\":%.1f,\"cpu_us_per_delivery\":%.2f,"
           "\"server_cpu_pct\":%.0f,\"p50_us\":%llu,\"p99_us\":%llu,\"p999_us\":%llu,\"max_us\":%llu,"
           "\"pss_kib\":%ld}\n",
           MODE_NAMES[options.mode], options.devices, options.apps, options.window, message.length, open_count,
           failed_count, (unsigned long long)latencies.count, latencies.count / elapsed_s,
           latencies.bytes / elapsed_s / 1048576, latencies.count ? cpu_s * 1e6 / latencies.count : 0,
           cpu_s / elapsed_s * 100, (unsigned long long)percentile_us(0.5),
           (unsigned long long)percentile_us(0.99), (unsigned long long)percentile_us(0.999),
           (unsigned long long)latencies.longest_us, server_pss_kib());
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    raise_open_files();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) fail("epoll_create1: %s", strerror(errno));
    compose_message();
    lay_out_connections();
    if (options.mode == IDLE || options.mode == STORM)
        measure_connecting();
    else
        measure_messages();
    disconnect_all();
    if (failed_count) fprintf(stderr, "load: %d of %d connections failed\n", failed_count, connection_count);
    return failed_count ? 1 : 0;
}
