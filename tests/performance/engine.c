/* A vLLM server that costs nothing: the wire format of vLLM 0.32, no model, one thread.
 *
 *   engine PORT
 *
 * POST with "stream":true: a role chunk, then `max_tokens` chunks of one token, one every `seed` microseconds (0: as
 * fast as they are taken), usage in each if "continuous_usage_stats":true stands in the body, a chunk with usage if
 * "include_usage":true does, then [DONE]. `seed` is abused because every gateway passes it on. Other POSTs: one JSON
 * answer. GET: /health, /v1/models (the model is `mock`), /metrics (counters that agree with what was answered).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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

enum { EVENTS = 256, CHUNK = 640, TICK_US = 500 };

typedef struct Stream {
    int fd, active, continuous, wants_usage, sent, tokens, blocked, close_after;
    uint64_t step_us, due_us;
    char *in;
    size_t have, room;
    char *out;
    size_t out_from, out_to, out_room;
    struct Stream *previous, *next;
} Stream;

static Stream running = {.next = &running, .previous = &running};
static unsigned long long generation_tokens, prompt_tokens, requests, steps;
static int poller;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void forget(Stream *s) {
    if (s->active) {
        s->previous->next = s->next;
        s->next->previous = s->previous;
    }
    close(s->fd);
    free(s->in);
    free(s->out);
    free(s);
}

/* Writes what waits; 0 when the peer is gone. */
static int flush(Stream *s) {
    while (s->out_from < s->out_to) {
        ssize_t n = send(s->fd, s->out + s->out_from, s->out_to - s->out_from, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) return 0;
            if (!s->blocked) {
                struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = s};
                epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
                s->blocked = 1;
            }
            return 1;
        }
        s->out_from += n;
    }
    s->out_from = s->out_to = 0;
    if (s->blocked) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
        epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
        s->blocked = 0;
    }
    return 1;
}

static void put(Stream *s, const char *data, size_t size) {
    if (s->out_to + size > s->out_room) {
        s->out_room = (s->out_to + size) * 2;
        s->out = realloc(s->out, s->out_room);
    }
    memcpy(s->out + s->out_to, data, size);
    s->out_to += size;
}

static void put_chunk(Stream *s, const char *data, size_t size) {
    char head[16];
    put(s, head, snprintf(head, sizeof head, "%zx\r\n", size));
    put(s, data, size);
    put(s, "\r\n", 2);
}

#define BEGIN                                                                                                          \
    "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1795458198,"         \
    "\"model\":\"mock\",\"choices\":["
#define USAGE ",\"usage\":{\"prompt_tokens\":10,\"total_tokens\":%d,\"completion_tokens\":%d," \
              "\"completion_tokens_details\":null}"

/* The next chunk of a stream; 0 after the last. */
static int advance(Stream *s) {
    char text[CHUNK], usage[160] = "";
    int made = s->sent, size;
    if (s->continuous) snprintf(usage, sizeof usage, USAGE, 10 + made, made);
    if (made == 0)
        size = snprintf(text, sizeof text,
                        BEGIN "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                              "\"finish_reason\":null}]%s,\"prompt_token_ids\":null,\"prompt_text\":null}\n\n",
                        usage);
    else if (made < s->tokens)
        size = snprintf(text, sizeof text,
                        BEGIN "{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,"
                              "\"finish_reason\":null,\"token_ids\":null}]%s}\n\n",
                        usage);
    else
        size = snprintf(text, sizeof text,
                        BEGIN "{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,"
                              "\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":null}]%s%s}\n\n",
                        usage, s->wants_usage ? "" : ",\"system_fingerprint\":\"vllm-mock\"");
    put_chunk(s, text, size);
    s->sent++;
    generation_tokens += made > 0;
    if (made < s->tokens) return 1;
    if (s->wants_usage) {
        size = snprintf(text, sizeof text, BEGIN "]" USAGE ",\"system_fingerprint\":\"vllm-mock\"}\n\n", 10 + made, made);
        put_chunk(s, text, size);
    }
    put_chunk(s, "data: [DONE]\n\n", 14);
    put(s, "0\r\n\r\n", 5);
    return 0;
}

static void begin(Stream *s) {
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    put(s, head, sizeof head - 1);
    s->active = 1;
    s->sent = 0;
    s->due_us = now_us();
    s->next = &running;
    s->previous = running.previous;
    running.previous->next = s;
    running.previous = s;
}

static void end(Stream *s) {
    s->previous->next = s->next;
    s->next->previous = s->previous;
    s->active = 0;
}

static void put_answer(Stream *s, const char *type, const char *body, size_t size) {
    char head[200];
    put(s, head,
        snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n",
                 type, size));
    put(s, body, size);
}

static long long number(const char *body, size_t size, const char *name, long long otherwise) {
    const char *found = memmem(body, size, name, strlen(name));
    return found ? strtoll(found + strlen(name) + strspn(found + strlen(name), " :"), NULL, 10) : otherwise;
}

static int says(const char *body, size_t size, const char *name) {
    const char *found = memmem(body, size, name, strlen(name));
    if (!found) return 0;
    found += strlen(name);
    return !strncmp(found + strspn(found, " :"), "true", 4);
}

static void answer(Stream *s, const char *line, const char *body, size_t size) {
    char text[4096];
    if (!strncmp(line, "POST", 4)) {
        /* members stand at the end of what clients here send: only there is looked, not in 200 kB of prompt */
        const char *tail = size > 4096 ? body + size - 4096 : body;
        size_t left = body + size - tail;
        requests++;
        prompt_tokens += 10;
        s->tokens = (int)number(tail, left, "\"max_tokens\"", 16);
        s->step_us = (uint64_t)number(tail, left, "\"seed\"", 0);
        if (says(tail, left, "\"stream\"")) {
            s->continuous = says(tail, left, "\"continuous_usage_stats\"");
            s->wants_usage = says(tail, left, "\"include_usage\"");
            begin(s);
            return;
        }
        generation_tokens += s->tokens;
        int made = snprintf(
            text, sizeof text,
            "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1795458217,\"model\":\"mock\","
            "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\" word word word\",\"refusal\":null,"
            "\"annotations\":null,\"audio\":null,\"function_call\":null,\"reasoning\":null},\"logprobs\":null,"
            "\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":null,\"routed_experts\":null}],"
            "\"service_tier\":null,\"system_fingerprint\":\"vllm-mock\",\"usage\":{\"prompt_tokens\":10,\"total_tokens\":%d,"
            "\"completion_tokens\":%d,\"prompt_tokens_details\":{\"cached_tokens\":0}},\"kv_transfer_params\":null,"
            "\"metrics\":null}",
            10 + s->tokens, s->tokens);
        put_answer(s, "application/json", text, made);
    } else if (strstr(line, " /v1/models ")) {
        const char *models = "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1795458198,"
                             "\"owned_by\":\"vllm\",\"root\":\"mock\",\"parent\":null,\"max_model_len\":131072}]}";
        put_answer(s, "application/json", models, strlen(models));
    } else if (strstr(line, " /metrics ")) {
        unsigned active = 0;
        for (Stream *one = running.next; one != &running; one = one->next) active++;
        int made = snprintf(text, sizeof text,
                            "vllm:num_requests_running{engine=\"0\",model_name=\"mock\"} %u.0\n"
                            "vllm:num_requests_waiting{engine=\"0\",model_name=\"mock\"} 0.0\n"
                            "vllm:prompt_tokens_total{engine=\"0\",model_name=\"mock\"} %llu.0\n"
                            "vllm:generation_tokens_total{engine=\"0\",model_name=\"mock\"} %llu.0\n"
                            "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"mock\"} %llu.0\n"
                            "vllm:iteration_tokens_total_count{engine=\"0\",model_name=\"mock\"} %llu.0\n",
                            active, prompt_tokens, generation_tokens, requests, steps);
        put_answer(s, "text/plain", text, made);
    } else {
        put_answer(s, "application/json", "{}", 2);
    }
}

/* Takes one whole request off the buffer, if there is one. */
static int take(Stream *s) {
    char *head_end = memmem(s->in, s->have, "\r\n\r\n", 4);
    if (!head_end) return 0;
    size_t head = head_end + 4 - s->in, size = 0;
    for (char *p = s->in; p && p < head_end; p = memchr(p, '\n', head_end - p), p = p ? p + 1 : p) {
        if (!strncasecmp(p, "content-length:", 15)) size = strtoull(p + 15, NULL, 10);
        if (!strncasecmp(p, "transfer-encoding: chunked", 26)) {
            /* a gateway that sends bodies in chunks: take them as one, whose end is the empty chunk */
            char *stop = memmem(s->in + head, s->have - head, "\r\n0\r\n\r\n", 7);
            if (!stop) return 0;
            size = stop + 7 - (s->in + head);
        }
        if (!strncasecmp(p, "connection: close", 17)) s->close_after = 1;
        if (!strncasecmp(p, "expect: 100-continue", 20) && s->have == head) put(s, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    }
    if (s->have < head + size) return 0;
    *head_end = 0;
    answer(s, s->in, s->in + head, size);
    s->have -= head + size;
    memmove(s->in, s->in + head + size, s->have);
    return 1;
}

static int receive(Stream *s) {
    for (;;) {
        if (s->have == s->room) {
            s->room = s->room ? s->room * 2 : 8192;
            s->in = realloc(s->in, s->room + 1);
        }
        ssize_t n = recv(s->fd, s->in + s->have, s->room - s->have, 0);
        if (n == 0) return 0;
        if (n < 0) {
            if (errno != EAGAIN) return 0;
            break;
        }
        s->have += n;
        if ((size_t)n < s->room - (s->have - n)) break;
    }
    while (!s->active && s->have && take(s)) continue;
    return flush(s);
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), yes = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        Stream *s = calloc(1, sizeof *s);
        s->fd = fd;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

/* Gives every stream what is due; microseconds until the next look. */
static int tick(void) {
    uint64_t now = now_us();
    int hurry = 0, moved = 0;
    for (Stream *s = running.next, *next; s != &running; s = next) {
        next = s->next;
        if (s->blocked || s->due_us > now) continue;
        s->due_us += s->step_us;
        if (!s->step_us) hurry = 1;
        int more = advance(s);
        moved = 1;
        if (!more) end(s);
        if (!flush(s) || (!more && s->close_after && !s->blocked)) {
            forget(s);
            continue;
        }
        /* a request that was sent behind this one */
        while (!s->active && s->have && take(s)) continue;
    }
    steps += moved;
    return hurry ? 0 : TICK_US;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: engine PORT\n"), 2;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) return perror("engine"), 1;
    poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, found[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int wait_us = running.next == &running ? -1 : tick();
        struct timespec wait = {0, wait_us * 1000L};
        int count = epoll_pwait2(poller, found, EVENTS, wait_us < 0 ? NULL : &wait, NULL);
        for (int i = 0; i < count; i++) {
            Stream *s = found[i].data.ptr;
            if (!s) {
                welcome(listener);
                continue;
            }
            int alive = !(found[i].events & (EPOLLERR | EPOLLHUP)) || (found[i].events & EPOLLIN);
            if (alive && (found[i].events & EPOLLOUT)) alive = flush(s);
            if (alive && (found[i].events & EPOLLIN)) alive = receive(s);
            if (!alive) forget(s);
        }
    }
}
