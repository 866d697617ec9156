/* What the fills share. */

#ifndef BENCH_FILL_H
#define BENCH_FILL_H

#include <stdint.h>
#include <sys/resource.h>
#include <time.h>

static inline int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* How often this thread has lost the CPU to another one. */
static inline long interruptions(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nivcsw;
}

#endif
