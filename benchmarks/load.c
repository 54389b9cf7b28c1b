/* load: a WebSocket load generator for a relay between devices and their apps.
 *
 *   load MODE --port P [--device-port P] [--devices D] [--apps K] [--token JWT] [--key KEY] [--pid PID]...
 *
 * It opens D device connections and K app connections for each of them, drives one workload over
 * all of them from one thread, and prints one line of JSON. Devices connect to --device-port, which
 * is --port unless it is given. The modes:
 *
 *   fanout    each device keeps --window messages in flight; one is over when as many deliveries
 *             as the device has apps came back (saturation)
 *   rate      each device sends --rate messages a second, evenly spread (latency at a given load)
 *   fleet     devices say what machines in kitchens say, most of them off, --rate times as often
 *   command   each app keeps --window messages in flight to its device
 *   idle      connect, hold for --secs, read the server's memory
 *   storm     connect as fast as the server accepts, --concurrency attempts at a time
 *
 * What the server spends is read for each --pid: CPU time (user and system) and proportional
 * memory. `cpu_s` lists the CPU time of each of them, in their order; other figures are sums. CPU time
 * for each delivery is a property of the server, where deliveries per second also depend on who else
 * uses the machine. `generator_cpu_s` is the CPU time of this program meanwhile.
 *
 * Exit status: 0 when every connection held, 1 when one failed, 2 for a usage or system error.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common.h"
#include "connection.h"
#include "figures.h"
#include "messages.h"

enum { CONNECT_TIMEOUT_S = 120 };

enum mode { FANOUT, RATE, FLEET, COMMAND, IDLE, STORM, MODES };
static const char *const MODE_NAMES[MODES] = {"fanout", "rate", "fleet", "command", "idle", "storm"};

struct device {
    struct connection *socket;
    struct connection *apps;      /* `options.apps` of them */
    int deliveries;               /* fanout: deliveries counted towards the message that is over next */
    unsigned commands;            /* command: deliveries so far; says which app sends next */
};

static struct {
    enum mode mode;
    int port, device_port, devices, apps, window, size, concurrency, first_device;
    double rate_hz, measure_s, warmup_s, settle_s;
    const char *token, *key;
    bool binary, verbose;
} options = {
    .port = 3001, .devices = 1, .apps = 1, .window = 1, .size = 600, .concurrency = 64,
    .first_device = 0x100, .rate_hz = 1, .measure_s = 5, .warmup_s = 1, .settle_s = 0.5,
    .token = "", .key = "",
};

static struct device *devices;
static struct connection *connections;    /* all devices, then all apps */
static int connection_count;
static double device_hz = 1;              /* messages of one device at --rate 1 */
static bool driving;                      /* deliveries are answered with new messages */
static bool measuring;                    /* deliveries are counted */

/* ---- Messages -------------------------------------------------------------------------------- */

/* Send one message at once: a write for each message, as separate devices and apps would do. */
static void send_message(struct connection *connection) {
    if (connection->state != OPEN) return;
    const struct message *message = next_message();
    append_frame(connection, !message->stamp ? OP_PING : message->binary ? OP_BINARY : OP_TEXT, message->bytes,
                 message->length);
    if (!connection->wants_write) flush(connection);
}

/* Count a delivery, and keep the window full. Whatever carries no stamp is the relay's own talk. */
static void take_message(struct connection *connection, const char *payload, size_t length) {
    double sent_us = sending_time_us(payload, length);
    if (sent_us < 0) return;
    if (measuring) {
        double latency_us = now_s() * 1e6 - sent_us;
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

/* ---- Driving --------------------------------------------------------------------------------- */

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
    if (options.mode != RATE && options.mode != FLEET) {
        serve_for(seconds);
        return;
    }
    double all_hz = options.rate_hz * device_hz * options.devices, time_s = now_s(), end_s = time_s + seconds;
    if (!start_s) start_s = time_s;
    for (; time_s < end_s; time_s = now_s()) {
        for (; start_s + sent / all_hz <= time_s; sent++) send_message(devices[sent % options.devices].socket);
        serve_events(0);
    }
}

/* ---- Set-up and report ----------------------------------------------------------------------- */

static void compose_messages(void) {
    if (options.mode == FLEET) device_hz = compose_fleet();
    else compose_message(options.mode == COMMAND ? "command" : "status", options.size, options.binary);
}

static void lay_out_connections(void) {
    connection_count = options.devices * (options.apps + 1);
    connections = allocate(connection_count, sizeof *connections);
    devices = allocate(options.devices, sizeof *devices);
    for (int i = 0; i < options.devices; i++) {
        struct device *device = &devices[i];
        device->socket = &connections[i];
        device->socket->is_device = true;
        device->apps = &connections[options.devices + i * options.apps];
        for (int k = -1; k < options.apps; k++) {
            struct connection *connection = k < 0 ? device->socket : &device->apps[k];
            connection->device_number = options.first_device + i;
            connection->device = device;
        }
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
        {"device-port", 1, 0, 'o'}, {0, 0, 0, 0},
    };
    for (int c, at = 0; (c = getopt_long(argc, argv, "", known, &at)) != -1;) {
        const char *name = known[at].name;
        switch (c) {
        case 'p': options.port = whole_number(name, optarg, 1); break;
        case 'o': options.device_port = whole_number(name, optarg, 1); break;
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
            watch_process(whole_number(name, optarg, 1));
            break;
        default: exit(2);
        }
    }
    if (!options.device_port) options.device_port = options.port;
    if (optind != argc - 1) fail("give one mode: fanout, rate, fleet, command, idle or storm");
    for (options.mode = 0; strcmp(MODE_NAMES[options.mode], argv[optind]);)
        if (++options.mode == MODES) fail("unknown mode '%s': fanout, rate, fleet, command, idle or storm", argv[optind]);
    if (!options.apps && (options.mode == FANOUT || options.mode == COMMAND))
        fail("%s needs at least one app for each device (--apps)", argv[optind]);
}

static void measure_connecting(void) {
    long pss_before_kib = server_pss_kib();
    struct cpu before = read_cpu();
    double start_s = now_s();
    connect_all();
    double connect_s = now_s() - start_s;
    struct cpu connecting = cpu_since(&before);
    serve_for(options.settle_s);

    struct cpu connected = read_cpu();
    serve_for(options.measure_s);
    double idle_cpu_s = cpu_since(&connected).servers_s;
    long pss_kib = server_pss_kib();
    printf("{\"mode\":\"%s\",\"conns\":%d,\"failed\":%d,\"connect_s\":%.3f,\"conns_per_s\":%.0f,"
           "\"cpu_us_per_conn\":%.1f,\"pss_kib\":%ld,\"kib_per_conn\":%.2f,\"idle_cpu_pct\":%.2f,",
           MODE_NAMES[options.mode], open_count, failed_count, connect_s, connection_count / connect_s,
           connecting.servers_s * 1e6 / connection_count, pss_kib,
           (double)(pss_kib - pss_before_kib) / connection_count,
           options.measure_s > 0 ? idle_cpu_s / options.measure_s * 100 : 0);
    print_cpu(&connecting);
    puts("}");
}

static void measure_messages(void) {
    connect_all();
    serve_for(options.settle_s);
    driving = true;
    fill_windows();
    drive_for(options.warmup_s);

    double start_s = now_s();
    struct cpu before = read_cpu();
    measuring = true;
    drive_for(options.measure_s);
    measuring = driving = false;
    double elapsed_s = now_s() - start_s;
    struct cpu cpu = cpu_since(&before);
    double cpu_s = cpu.servers_s;

    printf("{\"mode\":\"%s\",\"devices\":%d,\"apps\":%d,\"window\":%d,\"size\":%d,\"open\":%d,\"failed\":%d,"
           "\"deliveries\":%llu,\"per_s\":%.0f,\"MiB_per_s\":%.1f,\"cpu_us_per_delivery\":%.2f,"
           "\"cpu_ms_per_s\":%.4f,\"server_cpu_pct\":%.0f,\"p50_us\":%llu,\"p99_us\":%llu,\"p999_us\":%llu,\"max_us\":%llu,"
           "\"pss_kib\":%ld,\"elapsed_s\":%.4f,",
           MODE_NAMES[options.mode], options.devices, options.apps, options.window, options.size, open_count,
           failed_count, (unsigned long long)deliveries.count, deliveries.count / elapsed_s,
           deliveries.bytes / elapsed_s / 1048576, deliveries.count ? cpu_s * 1e6 / deliveries.count : 0,
           cpu_s / elapsed_s * 1e3, cpu_s / elapsed_s * 100, (unsigned long long)percentile_us(0.5),
           (unsigned long long)percentile_us(0.99), (unsigned long long)percentile_us(0.999),
           (unsigned long long)deliveries.longest_us, server_pss_kib(), elapsed_s);
    print_cpu(&cpu);
    puts("}");
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    raise_open_files();
    const struct target target = {.port = options.port, .device_port = options.device_port, .token = options.token,
                                  .key = options.key, .verbose = options.verbose, .take_message = take_message};
    prepare_connections(&target);
    compose_messages();
    lay_out_connections();
    if (options.mode == IDLE || options.mode == STORM)
        measure_connecting();
    else
        measure_messages();
    for (int i = 0; i < connection_count; i++) reset_connection(&connections[i]);
    if (failed_count) fprintf(stderr, "load: %d of %d connections failed\n", failed_count, connection_count);
    return failed_count ? 1 : 0;
}
