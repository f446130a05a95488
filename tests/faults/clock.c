/* A wall clock that is wrong by as many seconds as a file says, in front of the C library's (for LD_PRELOAD).

   The monotonic clock stays right, and no wait is touched. libfaketime is left aside for what it does to waits: up to
   0.9.12 it takes each deadline of the monotonic clock for one that has passed, and a thread that waits for Python's
   lock then spins, with the mutex of that lock in its hands, instead of sleeping for 5 ms. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long seconds_off(void)
{
    const int error = errno;
    char text[32] = "";
    const char *name = getenv("PGQ_TEST_WALL_CLOCK");
    const int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0 || read(file, text, sizeof text - 1) <= 0)
        abort(); /* a scenario that sets no clock must not pass */
    close(file);
    errno = error;
    return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*right)(clockid_t, struct timespec *);
    if (!right)
        *(void **)&right = dlsym(RTLD_NEXT, "clock_gettime");
    const int result = right(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += seconds_off();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec at;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &at) != 0)
        return -1;
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec at;
    if (clock_gettime(CLOCK_REALTIME, &at) != 0)
        return -1;
    if (now)
        *now = at.tv_sec;
    return at.tv_sec;
}
