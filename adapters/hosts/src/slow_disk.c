/* A slow disk: every call that waits for the disk waits longer, by as many milliseconds as the file
 * says that ATOLL_SLOW_DISK names. It is read at each call, so the delay changes while processes run;
 * no file, or nothing in it: no delay. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* No more than this, whatever the file says. */
#define DELAY_MS_MAX 60000

/* Read once, before main: PostgreSQL moves its environment to make room for process titles. */
static char file[PATH_MAX];

__attribute__((constructor)) static void begin(void) {
    const char *named = getenv("ATOLL_SLOW_DISK");
    if (named != NULL && strlen(named) < sizeof file)
        strcpy(file, named);
}

static void wait_longer(void) {
    int before = errno;
    char text[16] = {0};
    int opened = open(file, O_RDONLY | O_CLOEXEC);
    if (opened >= 0) {
        ssize_t got = read(opened, text, sizeof text - 1);
        close(opened);
        long ms = got > 0 ? strtol(text, NULL, 10) : 0;
        if (ms > DELAY_MS_MAX)
            ms = DELAY_MS_MAX;
        if (ms > 0) {
            struct timespec left = {ms / 1000, ms % 1000 * 1000000};
            /* A disk is not interrupted by signals. */
            while (nanosleep(&left, &left) == -1 && errno == EINTR) {
            }
        }
    }
    errno = before;
}

#define SLOW(name, parameters, arguments)                                                          \
    int name parameters {                                                                          \
        static int(*real) parameters;                                                              \
        if (real == NULL)                                                                          \
            real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                                     \
        if (real == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        wait_longer();                                                                             \
        return real arguments;                                                                     \
    }

SLOW(fsync, (int fd), (fd))
SLOW(fdatasync, (int fd), (fd))
SLOW(syncfs, (int fd), (fd))
SLOW(sync_file_range, (int fd, off64_t from, off64_t bytes, unsigned int how),
     (fd, from, bytes, how))
