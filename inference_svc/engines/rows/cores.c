/* Puts OpenMP's threads on a core each: see cores.py, which compiles this. */
#define _GNU_SOURCE
#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>

/* The calling thread, which is number 0, and those that work with it, each on its own of `cores`. 0, or the number of an
 * error that one of them met; EAGAIN if they are fewer, which are left where they are. */
int32_t settle(const int32_t *cores, int32_t count) {
    int32_t failed = 0;
#pragma omp parallel num_threads(count) reduction(max : failed)
    {
        const int32_t core = cores[omp_get_thread_num()];
        const size_t size = CPU_ALLOC_SIZE(core + 1);
        cpu_set_t *own = omp_get_num_threads() == count ? CPU_ALLOC(core + 1) : NULL;
        if (own) {
            CPU_ZERO_S(size, own);
            CPU_SET_S(core, size, own);
            if (sched_setaffinity(0, size, own))
                failed = errno;
            CPU_FREE(own);
        } else {
            failed = EAGAIN;
        }
    }
    return failed;
}
