/* Preloaded by tests/engines/test_threads.py: a system that grants no more than so many threads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

int granted = 1 << 30;

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *what)
{
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) =
        (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(
            RTLD_NEXT, "pthread_create");
    if (__atomic_sub_fetch(&granted, 1, __ATOMIC_SEQ_CST) < 0) {
        __atomic_store_n(&granted, 0, __ATOMIC_SEQ_CST);
        return EAGAIN;
    }
    return create(thread, how, start, what);
}
