#define _GNU_SOURCE
#include "figures.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

/* Buckets of 1 µs up to 64 µs, then 32 to each doubling: no percentile is off by more than 3 %. */
enum { FINE = 64, STEPS = 32, BUCKETS = FINE + STEPS * 58 };
static uint64_t buckets[BUCKETS];
struct deliveries deliveries;

void count_delivery(uint64_t us, size_t bytes) {
    size_t bucket = us;
    if (us >= FINE) {
        int doubling = 63 - __builtin_clzll(us);              /* 6 or more */
        bucket = FINE + (size_t)(doubling - 6) * STEPS + ((us >> (doubling - 5)) & (STEPS - 1));
    }
    buckets[bucket]++;
    deliveries.count++;
    deliveries.bytes += bytes;
    if (us > deliveries.longest_us) deliveries.longest_us = us;
}

uint64_t percentile_us(double share) {
    uint64_t wanted = (uint64_t)(share * deliveries.count), seen = 0;
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += buckets[bucket];
        if (seen <= wanted) continue;
        if (bucket < FINE) return bucket;
        size_t doubling = (bucket - FINE) / STEPS + 6, step = (bucket - FINE) % STEPS;
        return (uint64_t)(STEPS + step) << (doubling - 5);
    }
    return deliveries.longest_us;
}

static int processes[MAX_PIDS], process_count;

void watch_process(int pid) {
    if (process_count == MAX_PIDS) fail("--pid can be given %d times", MAX_PIDS);
    processes[process_count++] = pid;
}

/* Return the CPU time (user and system) of one process and all threads that it ever had, or 0 when it is
 * gone. It is the sum that /proc/PID/stat shows in steps of 10 ms, which are too coarse for a sparse load. */
static double cpu_of_pid_s(int pid) {
    clockid_t clock;
    struct timespec spent;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &spent)) return 0;
    return spent.tv_sec + spent.tv_nsec * 1e-9;
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

struct cpu read_cpu(void) {
    struct cpu cpu = {.generator_s = cpu_of_pid_s(getpid())};
    for (int i = 0; i < process_count; i++) cpu.servers_s += cpu.each_s[i] = cpu_of_pid_s(processes[i]);
    return cpu;
}

struct cpu cpu_since(const struct cpu *before) {
    struct cpu cpu = read_cpu();
    cpu.servers_s -= before->servers_s;
    cpu.generator_s -= before->generator_s;
    for (int i = 0; i < process_count; i++) cpu.each_s[i] -= before->each_s[i];
    return cpu;
}

void print_cpu(const struct cpu *cpu) {
    printf("\"generator_cpu_s\":%.4f,\"cpu_s\":[", cpu->generator_s);
    for (int i = 0; i < process_count; i++) printf("%s%.6f", i ? "," : "", cpu->each_s[i]);
    putchar(']');
}

long server_pss_kib(void) {
    long sum = 0;
    for (int i = 0; i < process_count; i++) sum += pss_of_pid_kib(processes[i]);
    return sum;
}
