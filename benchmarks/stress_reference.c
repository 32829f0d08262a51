/* What the stress client is measured against: the same work in C, with nothing but the work.
 *
 *   stress_reference connect IP PORT CONNECTIONS PROCESSES FIRST_PORT   FIRST_PORT 0: the kernel chooses
 *   stress_reference pingpong IP PORT CONNECTIONS SECONDS BYTES
 *
 * connect: sockets bound to explicit source ports with SO_REUSEADDR (a busy one is passed over, SPARE at most in each
 * process), connected one after the other in each process; nothing is sent, and all are reset at the end. pingpong: one message on each connection, sent again as soon as the same bytes are back.
 * Both print one number: connects or messages per second. Exit status 1 when anything failed. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SPARE = 1500 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int dial(const struct sockaddr_in *to, int source_port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(source_port)};
    if (fd < 0)
        return -1;
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (source_port)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if ((source_port && bind(fd, (void *)&from, sizeof from)) || connect(fd, (void *)to, sizeof *to)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int connects(const struct sockaddr_in *to, int count, int processes, int first)
{
    double begun = now();
    int failed = 0, status, done[2], go[2];
    char byte = 0;
    if (pipe(done) || pipe(go))
        return 1;
    for (int p = 0; p < processes; p++) {
        int wanted = count * (long)(p + 1) / processes - count * (long)p / processes;
        int port = first ? first + count * (long)p / processes + SPARE * p : 0, spare = SPARE;
        if (!fork()) {
            int *fds = malloc(sizeof *fds * wanted), held = 0;
            while (held < wanted && spare >= 0) {
                int fd = dial(to, port);
                port += first != 0;
                if (fd < 0)
                    spare--;
                else
                    fds[held++] = fd;
            }
            failed = write(done[1], &byte, 1) != 1 || held < wanted;
            close(go[1]);
            failed |= read(go[0], &byte, 1) != 0; /* until all are connected */
            for (int i = 0; i < held; i++) {
                struct linger reset = {.l_onoff = 1};
                setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
                close(fds[i]);
            }
            _exit(failed);
        }
    }
    for (int p = 0; p < processes; p++)
        failed |= read(done[0], &byte, 1) != 1;
    printf("%.1f\n", count / (now() - begun));
    close(go[1]);
    while (wait(&status) > 0)
        failed |= status != 0;
    return failed;
}

static int pingpong(const struct sockaddr_in *to, int count, double seconds, int bytes)
{
    int epoll = epoll_create1(0), one = 1, bad = 0;
    int *have = calloc(count + 1024, sizeof *have);
    char *message = malloc(bytes), *reply = malloc(bytes);
    struct epoll_event events[256];
    long messages = 0;
    for (int i = 0; i < bytes; i++)
        message[i] = 'a' + i % 26;
    for (int i = 0; i < count; i++) {
        int fd = dial(to, 0);
        if (fd < 0)
            return 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        events[0] = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, events);
        bad |= send(fd, message, bytes, 0) != bytes;
    }
    double begun = now(), end = begun + seconds;
    while (now() < end) {
        int ready = epoll_wait(epoll, events, 256, 100);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd, got = recv(fd, reply, bytes - have[fd], 0);
            if (got <= 0) {
                bad |= !(got < 0 && errno == EAGAIN);
                continue;
            }
            bad |= memcmp(reply, message + have[fd], got) != 0;
            have[fd] += got;
            if (have[fd] == bytes) {
                have[fd] = 0;
                messages++;
                bad |= send(fd, message, bytes, 0) != bytes;
            }
        }
    }
    printf("%.1f\n", messages / (now() - begun));
    return bad;
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct rlimit files;
    if (argc != 7 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
        return 2;
    to.sin_port = htons(atoi(argv[3]));
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (!strcmp(argv[1], "connect"))
        return connects(&to, atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
    return pingpong(&to, atoi(argv[4]), atof(argv[5]), atoi(argv[6]));
}
