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

/* Add a process to those whose sums the next two return; end with an error when they are too many. */
void watch_process(int pid);
double server_cpu_s(void);
long server_pss_kib(void);
