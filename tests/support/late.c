/* Preloaded by tests/engines/test_threads_late.py: a system whose threads, but for the first, go on
   late or never after they were woken. Threads of the pool ask where they are when they wake. */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

int late = 0;    /* by so many microseconds; for ever where it is below 0 */
int delayed = 0; /* how often a thread was */

int sched_getcpu(void)
{
    unsigned processor = 0;
    int by = __atomic_load_n(&late, __ATOMIC_SEQ_CST);
    if (by != 0 && syscall(SYS_gettid) != getpid()) {
        __atomic_add_fetch(&delayed, 1, __ATOMIC_SEQ_CST);
        while (by < 0) {
            pause();
        }
        usleep((useconds_t)by);
    }
    syscall(SYS_getcpu, &processor, 0, 0);
    return (int)processor;
}
