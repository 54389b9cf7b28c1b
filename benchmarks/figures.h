/* What is measured: latencies of deliveries, and what the server's processes spend. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { MAX_PIDS = 64 };

struct deliveries {
    uint64_t count, bytes, longest_us;
};
extern struct deliveries deliveries;

void count_delivery(uint64_t latency_us, size_t bytes);
uint64_t percentile_us(double share);

/* Add a process to those that are measured; end with an error when they are too many. */
void watch_process(int pid);
long server_pss_kib(void);

/* CPU time of the measured processes, of each of them, and of this one. */
struct cpu {
    double servers_s, generator_s, each_s[MAX_PIDS];
};
struct cpu read_cpu(void);
struct cpu cpu_since(const struct cpu *before);
/* Print the fields `generator_cpu_s` and `cpu_s` of a JSON object. */
void print_cpu(const struct cpu *cpu);
