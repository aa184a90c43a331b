/* A load client that costs nothing beside what it loads: closed loop, one thread, HTTP/1.1.
 *
 *   client PORT connections=200 seconds=10 warm=2 stream=1 tokens=128 step_us=10000 prompt=100 slow=0 churn=0
 *
 * Each connection asks again as soon as it was answered. warm: seconds at the start of which no times are kept.
 * prompt: bytes of the prompt. slow: so many of the connections read 2 kB every 50 ms. churn: a new connection for
 * every request. Prints one JSON object; times in microseconds: ttft from the request's last byte to the first event,
 * gap between the reads that brought events of one stream, latency of whole answers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, BUFFER = 1 << 16, BUCKETS = 64 * 40, SLOW_BYTES = 2048, SLOW_US = 50000, STUCK_US = 20000000 };

typedef struct {
    int fd, slow, status;
    size_t sent;
    uint64_t asked_us, event_us, read_us;
    long long left; /* bytes of the body that are missing; -1: in chunks, -2: the head is */
    char tail[8], head[4096];
    size_t head_size, tail_size;
    int events;
} Connection;

typedef struct {
    uint64_t counts[BUCKETS], total, most;
} Times; /* 64 buckets for each power of two: within 1.6 % */

static Times ttft, gap, latency;
static struct sockaddr_in at = {.sin_family = AF_INET};
static char *request, reading[BUFFER];
static size_t request_size;
static int poller, churn, keep, stream_wanted;
static unsigned long long answered, errors, events_all, events_kept, bytes;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void note(Times *times, uint64_t us) {
    int shift = us < 64 ? 0 : 57 - __builtin_clzll(us);
    int place = us < 64 ? (int)us : 64 * (shift + 1) + (int)((us >> shift) & 63);
    times->counts[place < BUCKETS ? place : BUCKETS - 1]++;
    times->total++;
    if (us > times->most) times->most = us;
}

static double quantile(const Times *times, double part) {
    uint64_t wanted = (uint64_t)(part * times->total), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += times->counts[i];
        if (seen > wanted) return i < 64 ? i : (double)((64ULL + i % 64) << (i / 64 - 1));
    }
    return times->most;
}

static void say(const char *name, const Times *times) {
    if (!times->total) {
        printf(",\"%s\":null", name);
        return;
    }
    printf(",\"%s\":{\"p50\":%.0f,\"p90\":%.0f,\"p99\":%.0f,\"max\":%llu}", name, quantile(times, 0.5), quantile(times, 0.9),
           quantile(times, 0.99), (unsigned long long)times->most);
}

static void watch(Connection *c, int how, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, how, c->fd, &e);
}

static void open_connection(Connection *c) {
    int yes = 1, small = 4096;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (c->slow) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    connect(c->fd, (struct sockaddr *)&at, sizeof at);
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void begin(Connection *c) {
    c->sent = c->head_size = c->tail_size = c->events = 0;
    c->left = -2;
    c->event_us = 0;
    c->asked_us = now_us();
}

static void push(Connection *c) {
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (n <= 0) return;
        c->sent += n;
    }
    c->asked_us = now_us();
    watch(c, EPOLL_CTL_MOD, c->slow ? 0 : EPOLLIN);
}

static void again(Connection *c, int broken) {
    if (broken) errors++;
    begin(c);
    if (broken || churn) {
        close(c->fd);
        open_connection(c);
    } else {
        watch(c, EPOLL_CTL_MOD, EPOLLOUT);
        push(c);
    }
}

/* Counts events: their ends are empty lines. The last bytes of each read are kept, for the next may complete one. */
static int count_events(Connection *c, const char *data, size_t size) {
    int found = 0;
    if (c->tail_size && c->tail[c->tail_size - 1] == '\n' && size && data[0] == '\n') found++;
    for (const char *p = data; (p = memmem(p, size - (p - data), "\n\n", 2)); p += 2) found++;
    return found;
}

static void remember(Connection *c, const char *data, size_t size) {
    char both[16];
    size_t old = c->tail_size, fresh = size < 8 ? size : 8;
    memcpy(both, c->tail, old);
    memcpy(both + old, data + size - fresh, fresh);
    size_t all = old + fresh, kept = all < 5 ? all : 5;
    memcpy(c->tail, both + all - kept, kept);
    c->tail_size = kept;
}

/* Reads the head as far as it has come; the bytes of `data` that belong to it, or -1 while it is incomplete. */
static long take_head(Connection *c, const char *data, size_t size) {
    size_t before = c->head_size, fits = sizeof c->head - 1 - before;
    memcpy(c->head + before, data, size < fits ? size : fits);
    c->head_size += size < fits ? size : fits;
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return -1;
    c->status = atoi(c->head + 9);
    char *length = strcasestr(c->head, "\ncontent-length:");
    c->left = length && length < end ? strtoll(length + 16, NULL, 10) : -1;
    return end + 4 - c->head - (long)before;
}

static void pull(Connection *c) {
    ssize_t n = recv(c->fd, reading, c->slow ? SLOW_BYTES : BUFFER, 0);
    uint64_t now = now_us();
    if (n < 0 && errno == EAGAIN) return;
    c->read_us = now;
    if (n <= 0) {
        again(c, 1);
        return;
    }
    bytes += n;
    const char *data = reading;
    size_t size = n;
    if (c->left == -2) {
        long head = take_head(c, data, size);
        if (head < 0) return;
        data += head;
        size -= head;
    }
    int found = stream_wanted ? count_events(c, data, size) : 0;
    if (found) {
        if (keep && !c->slow) {
            if (c->event_us) note(&gap, now - c->event_us);
            else note(&ttft, now - c->asked_us);
            events_kept += found;
        }
        c->event_us = now;
        c->events += found;
        events_all += found;
    }
    if (size) remember(c, data, size);
    int over = c->left == -1 ? c->tail_size == 5 && !memcmp(c->tail, "0\r\n\r\n", 5) : (c->left -= size) <= 0;
    if (!over) return;
    if (keep && !c->slow) note(&latency, now - c->asked_us);
    answered++;
    int wrong = c->status != 200 || (stream_wanted && c->events < 2);
    again(c, wrong);
}

static long setting(int argc, char **argv, const char *name, long otherwise) {
    size_t size = strlen(name);
    for (int i = 2; i < argc; i++)
        if (!strncmp(argv[i], name, size) && argv[i][size] == '=') return atol(argv[i] + size + 1);
    return otherwise;
}

static void write_request(long prompt, long tokens, long step_us) {
    request = malloc(prompt + 2048);
    char *body = malloc(prompt + 1024);
    int size = sprintf(body, "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (long i = 0; i < prompt; i++) body[size++] = "a word and "[i % 11];
    size += sprintf(body + size, "\"}],\"max_tokens\":%ld,\"seed\":%ld%s}", tokens, step_us,
                    stream_wanted ? ",\"stream\":true" : "");
    request_size = sprintf(request,
                           "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                           "authorization: Bearer none\r\nuser-agent: client\r\naccept: */*\r\n%scontent-length: %d\r\n\r\n",
                           churn ? "connection: close\r\n" : "", size);
    memcpy(request + request_size, body, size);
    request_size += size;
    free(body);
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: client PORT [name=number]...\n"), 2;
    at.sin_port = htons(atoi(argv[1]));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    long connections = setting(argc, argv, "connections", 200), slow = setting(argc, argv, "slow", 0);
    double seconds = setting(argc, argv, "seconds", 10), warm = setting(argc, argv, "warm", 2);
    stream_wanted = setting(argc, argv, "stream", 1);
    churn = setting(argc, argv, "churn", 0);
    long step_us = setting(argc, argv, "step_us", 10000), tokens = setting(argc, argv, "tokens", 128);
    write_request(setting(argc, argv, "prompt", 100), tokens, step_us);
    poller = epoll_create1(0);
    Connection *all = calloc(connections, sizeof *all);
    uint64_t start = now_us(), kept_from = start + (uint64_t)(warm * 1e6), stop = start + (uint64_t)((warm + seconds) * 1e6);
    long opened = 0;
    struct epoll_event found[EVENTS];
    for (uint64_t now = start; now < stop; now = now_us()) {
        /* connections come one after the other over the first second, so that streams are not in step */
        long due = warm > 1 ? (long)(connections * (now - start) / 1e6) + 1 : connections;
        for (; opened < connections && opened < due; opened++) {
            all[opened].slow = opened < slow;
            begin(&all[opened]);
            open_connection(&all[opened]);
        }
        if (!keep && now >= kept_from) keep = 1, kept_from = now;
        int count = epoll_wait(poller, found, EVENTS, 1);
        for (int i = 0; i < count; i++) {
            Connection *c = found[i].data.ptr;
            if (c->sent < request_size) {
                if (found[i].events & EPOLLERR) again(c, 1);
                else push(c);
            } else
                pull(c);
        }
        for (long i = 0; i < slow && i < opened; i++)
            if (all[i].sent == request_size && now > all[i].read_us + SLOW_US) pull(&all[i]);
        for (long i = slow; i < opened; i++)
            if (now > all[i].asked_us + STUCK_US && now > all[i].event_us + STUCK_US) again(&all[i], 1);
    }
    double kept_s = (now_us() - kept_from) / 1e6;
    printf("{\"seconds\":%.3f,\"all_seconds\":%.3f,\"answered\":%llu,\"errors\":%llu,\"latencies\":%llu,\"events\":%llu,"
           "\"events_all\":%llu,\"bytes\":%llu",
           kept_s, (now_us() - start) / 1e6, answered, errors, (unsigned long long)latency.total, events_kept, events_all,
           bytes);
    say("ttft_us", &ttft);
    say("gap_us", &gap);
    say("latency_us", &latency);
    puts("}");
    return 0;
}
