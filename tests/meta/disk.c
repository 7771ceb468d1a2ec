/* Stands between LMDB and the disk, by LD_PRELOAD: reports every sync and fails the ones it is told to.
 *
 * XINF_DISK_REPORT=fd    writes "sync\n" there after each fdatasync of a data.mdb has returned, "meta\n" after each
 *                        write to a descriptor opened for synchronous writing (LMDB's meta page)
 * XINF_DISK_FAIL=path    while this file exists, writes and syncs of data.mdb fail with the errno it holds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int number_of(const char *name)
{
    const char *text = getenv(name);
    return text == NULL ? -1 : atoi(text);
}

static int is_data(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 8)
        return 0;
    path[n] = 0;
    return strcmp(path + n - 8, "data.mdb") == 0;
}

static int failure(void)
{
    const char *path = getenv("XINF_DISK_FAIL");
    char text[16] = {0};
    int fd, code = 0;
    if (path == NULL || (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        return 0;
    if (read(fd, text, sizeof text - 1) > 0)
        code = atoi(text);
    close(fd);
    return code;
}

static void report(const char *line)
{
    int fd = number_of("XINF_DISK_REPORT");
    if (fd >= 0 && write(fd, line, strlen(line)) < 0)
        abort();
}

int fdatasync(int fd)
{
    static int (*next)(int);
    int code;
    if (next == NULL)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (!is_data(fd))
        return next(fd);
    if ((code = failure()) != 0) {
        errno = code;
        return -1;
    }
    int result = next(fd);
    if (result == 0)
        report("sync\n");
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    static ssize_t (*next)(int, const void *, size_t, off_t);
    int code;
    if (next == NULL)
        next = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    if (is_data(fd) && (code = failure()) != 0) {
        errno = code;
        return -1;
    }
    ssize_t result = next(fd, data, n, at);
    if (result == (ssize_t)n && (fcntl(fd, F_GETFL) & O_DSYNC) && is_data(fd))
        report("meta\n");
    return result;
}

ssize_t writev(int fd, const struct iovec *parts, int n)
{
    static ssize_t (*next)(int, const struct iovec *, int);
    int code;
    if (next == NULL)
        next = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    if (is_data(fd) && (code = failure()) != 0) {
        errno = code;
        return -1;
    }
    return next(fd, parts, n);
}
