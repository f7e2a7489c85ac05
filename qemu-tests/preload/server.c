/*
 * Loaded before QEMU itself: gives the devices named in the environment their capabilities, and then serves the
 * harness' socket, one line of answer to each line of command. README.md has the commands.
 */
#define _GNU_SOURCE
#include "endpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SOCKET_VARIABLE "PORTCULLIS_ENDPOINT_SOCKET"
#define DEVICES_VARIABLE "PORTCULLIS_ENDPOINTS"

#define MAX_ENDPOINTS 4
#define MAX_LINE 65536
#define MAX_DATA 4096
#define MAX_WORDS 12

static struct endpoint endpoints[MAX_ENDPOINTS];
static unsigned endpoint_count;
static int connection = -1;
static char answer[MAX_LINE];
static size_t answer_size;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Adds to the line that is being written. */
static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(answer + answer_size, sizeof answer - answer_size, format, arguments);
    va_end(arguments);
    if (size > 0)
        answer_size += (size_t)size < sizeof answer - answer_size ? (size_t)size : sizeof answer - answer_size - 1;
}

/* Ends the line and sends it; false when nobody reads any more. */
static bool send_line(void)
{
    if (answer_size == sizeof answer)
        answer_size -= 1;
    answer[answer_size++] = '\n';
    size_t sent = 0;
    while (sent < answer_size) {
        ssize_t count = send(connection, answer + sent, answer_size - sent, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return false;
        sent += (size_t)count;
    }
    answer_size = 0;
    return true;
}

static bool parse_number(const char *text, uint64_t *number)
{
    char *end;
    errno = 0;
    *number = strtoull(text, &end, 0);
    return !errno && end != text && !*end;
}

static bool parse_pasid(const char *text, uint32_t *pasid)
{
    uint64_t number;
    if (!strcmp(text, "none")) {
        *pasid = NO_PASID;
        return true;
    }
    if (!parse_number(text, &number) || number >> PASID_WIDTH)
        return false;
    *pasid = (uint32_t)number;
    return true;
}

static bool parse_data(const char *text, uint8_t *data, size_t *size)
{
    size_t length = strlen(text);
    if (!length || length % 2 || length / 2 > MAX_DATA || text[strspn(text, "0123456789abcdef")])
        return false;
    *size = length / 2;
    for (size_t i = 0; i < *size; i++)
        sscanf(text + 2 * i, "%2hhx", &data[i]);
    return true;
}

static void say_pasid(uint32_t pasid)
{
    if (pasid == NO_PASID)
        say("none");
    else
        say("%#" PRIx32, pasid);
}

/* The answer's beginning; true if there is more to say. */
static bool say_outcome(enum outcome outcome)
{
    if (outcome == REFUSED)
        say("refused %s", endpoint_refusal);
    else
        say("%s", outcome == DONE ? "ok" : "fault");
    return outcome == DONE;
}

typedef enum outcome (*access_function)(struct endpoint *, uint32_t, uint64_t, void *, size_t, bool);

static bool run_read(struct endpoint *endpoint, char **words, access_function access)
{
    static uint8_t data[MAX_DATA];
    uint32_t pasid;
    uint64_t address, size;
    if (!parse_pasid(words[0], &pasid) || !parse_number(words[1], &address) || !parse_number(words[2], &size) ||
        !size || size > MAX_DATA)
        return false;
    qemu_lock();
    bool done = say_outcome(access(endpoint, pasid, address, data, size, false));
    qemu_unlock();
    if (done) {
        say(" data=");
        for (size_t i = 0; i < size; i++)
            say("%02x", data[i]);
    }
    return true;
}

static bool run_write(struct endpoint *endpoint, char **words, access_function access)
{
    static uint8_t data[MAX_DATA];
    uint32_t pasid;
    uint64_t address;
    size_t size;
    if (!parse_pasid(words[0], &pasid) || !parse_number(words[1], &address) || !parse_data(words[2], data, &size))
        return false;
    qemu_lock();
    say_outcome(access(endpoint, pasid, address, data, size, true));
    qemu_unlock();
    return true;
}

static bool command_state(struct endpoint *endpoint, char **words)
{
    (void)words;
    qemu_lock();
    say("ok master=%u pasid=%u ats=%u pri=%u allocation=%" PRIu32 " outstanding=%" PRIu32,
        qemu.pci_default_read_config(endpoint->device, 4, 2) >> 2 & 1, qemu.pcie_pasid_enabled(endpoint->device),
        qemu.pcie_ats_enabled(endpoint->device), qemu.pcie_pri_enabled(endpoint->device),
        qemu.pcie_pri_get_req_alloc(endpoint->device), endpoint->outstanding_sum);
    qemu_unlock();
    return true;
}

static bool command_read(struct endpoint *endpoint, char **words)
{
    return run_read(endpoint, words, endpoint_access);
}

static bool command_write(struct endpoint *endpoint, char **words)
{
    return run_write(endpoint, words, endpoint_access);
}

static bool command_cached_read(struct endpoint *endpoint, char **words)
{
    return run_read(endpoint, words, endpoint_cached_access);
}

static bool command_cached_write(struct endpoint *endpoint, char **words)
{
    return run_write(endpoint, words, endpoint_cached_access);
}

static bool command_translate(struct endpoint *endpoint, char **words)
{
    uint32_t pasid;
    uint64_t address;
    struct translation result;
    bool wants_write = !strcmp(words[2], "rw");
    if (!parse_pasid(words[0], &pasid) || !parse_number(words[1], &address) ||
        (!wants_write && strcmp(words[2], "r")))
        return false;
    qemu_lock();
    if (say_outcome(endpoint_translate(endpoint, pasid, address, wants_write, &result)))
        say(" address=%#" PRIx64 " translated=%#" PRIx64 " size=%#" PRIx64 " access=%s%s", result.address,
            result.translated, result.size, result.permission & PERMISSION_READ ? "r" : "",
            result.permission & PERMISSION_WRITE ? "w" : "");
    qemu_unlock();
    return true;
}

static bool command_invalidations(struct endpoint *endpoint, char **words)
{
    (void)words;
    pthread_mutex_lock(&endpoint_reports_lock);
    say("ok");
    for (unsigned i = 0; i < endpoint->invalidation_count; i++) {
        const struct invalidation *invalidation = &endpoint->invalidations[i];
        say(" ");
        say_pasid(invalidation->pasid);
        say(":%#" PRIx64 "-%#" PRIx64, invalidation->address, invalidation->last);
    }
    endpoint->invalidation_count = 0;
    pthread_mutex_unlock(&endpoint_reports_lock);
    return true;
}

static bool command_page_request(struct endpoint *endpoint, char **words)
{
    struct page_request request = {0};
    uint64_t group;
    if (!parse_pasid(words[0], &request.pasid) || !parse_number(words[1], &request.address) ||
        !parse_number(words[3], &group) || group > 511)
        return false;
    request.group = (uint16_t)group;
    request.is_read = !!strchr(words[2], 'r');
    request.is_write = !!strchr(words[2], 'w');
    request.execute = !!strchr(words[2], 'x');
    request.privileged = !!strchr(words[2], 'p');
    if (words[2][strspn(words[2], "rwxp-")] || (strcmp(words[4], "last") && strcmp(words[4], "more")))
        return false;
    request.last = !strcmp(words[4], "last");
    qemu_lock();
    say_outcome(endpoint_request_page(endpoint, &request));
    qemu_unlock();
    return true;
}

static bool command_flood(struct endpoint *endpoint, char **words)
{
    struct page_request request = {.is_read = true, .is_write = true, .last = true};
    uint64_t count, taken;
    if (!parse_pasid(words[0], &request.pasid) || !parse_number(words[1], &request.address) ||
        !parse_number(words[2], &count) || count > LIST_SIZE)
        return false;
    /* In one go: nobody reads the queue meanwhile. */
    qemu_lock();
    if (say_outcome(endpoint_flood(endpoint, request, count, &taken)))
        say(" taken=%" PRIu64, taken);
    qemu_unlock();
    return true;
}

/* Waits for a response, with a limit; takes all that are there. */
static bool command_responses(struct endpoint *endpoint, char **words)
{
    static const char *const codes[] = {"success", "invalid", "failure"};
    uint64_t limit;
    if (!parse_number(words[0], &limit) || limit > 600000)
        return false;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(limit / 1000);
    until.tv_nsec += (long)(limit % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec += 1;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&endpoint_reports_lock);
    while (!endpoint->response_count &&
           !pthread_cond_timedwait(&endpoint_reports_changed, &endpoint_reports_lock, &until))
        continue;
    say("ok");
    for (unsigned i = 0; i < endpoint->response_count; i++) {
        const struct response *response = &endpoint->responses[i];
        say(" ");
        say_pasid(response->pasid);
        say(":%u:%s", response->group,
            response->code >= 0 && response->code < 3 ? codes[response->code] : "reserved");
    }
    endpoint->response_count = 0;
    pthread_mutex_unlock(&endpoint_reports_lock);
    return true;
}

static bool command_start_writes(struct endpoint *endpoint, char **words)
{
    uint32_t pasid;
    uint64_t address;
    if (!parse_pasid(words[0], &pasid) || !parse_number(words[1], &address))
        return false;
    qemu_lock();
    say_outcome(endpoint_start_writes(endpoint, pasid, address));
    qemu_unlock();
    return true;
}

static bool command_stop_writes(struct endpoint *endpoint, char **words)
{
    (void)words;
    if (say_outcome(endpoint_stop_writes(endpoint)))
        say(" writes=%" PRIu64 " faults=%" PRIu64 " refused=%" PRIu64, endpoint->writer.writes,
            endpoint->writer.faults, endpoint->writer.refused);
    return true;
}

static const struct command {
    const char *name;
    unsigned arguments;
    /* False for arguments that make no sense. */
    bool (*run)(struct endpoint *endpoint, char **words);
} commands[] = {
    {"state", 0, command_state},
    {"read", 3, command_read},
    {"write", 3, command_write},
    {"translate", 3, command_translate},
    {"cached-read", 3, command_cached_read},
    {"cached-write", 3, command_cached_write},
    {"invalidations", 0, command_invalidations},
    {"page-request", 5, command_page_request},
    {"flood", 3, command_flood},
    {"responses", 1, command_responses},
    {"start-writes", 2, command_start_writes},
    {"stop-writes", 0, command_stop_writes},
};

static void perform(char *line)
{
    char *words[MAX_WORDS], *rest = NULL;
    unsigned count = 0;
    for (char *word = strtok_r(line, " \r", &rest); word && count < MAX_WORDS; word = strtok_r(NULL, " \r", &rest))
        words[count++] = word;
    if (count < 2) {
        say("error a line is COMMAND DEVICE ARGUMENTS");
        return;
    }
    struct endpoint *endpoint = endpoints;
    while (endpoint < endpoints + endpoint_count && strcmp(endpoint->name, words[1]))
        endpoint++;
    if (endpoint == endpoints + endpoint_count) {
        say("error no device %s", words[1]);
        return;
    }
    for (const struct command *command = commands; command < commands + sizeof commands / sizeof *commands; command++)
        if (!strcmp(command->name, words[0])) {
            if (count != command->arguments + 2 || !command->run(endpoint, words + 2))
                say("error bad arguments for %s", words[0]);
            return;
        }
    say("error no command %s", words[0]);
}

/* Serves until the harness closes its end. */
static void *serve(void *nothing)
{
    static char line[2 * MAX_DATA + 256];
    size_t size = 0;
    qemu.rcu_register_thread();
    say("ready");
    if (!send_line())
        return nothing;
    for (;;) {
        ssize_t count = recv(connection, line + size, sizeof line - size - 1, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            break;
        size += (size_t)count;
        char *end;
        while ((end = memchr(line, '\n', size))) {
            *end = 0;
            perform(line);
            if (!send_line())
                return nothing;
            size -= (size_t)(end + 1 - line);
            memmove(line, end + 1, size);
        }
        if (size == sizeof line - 1) {
            say("error the line is too long");
            send_line();
            break;
        }
    }
    close(connection);
    return nothing;
}

/* Makes and tests the devices named in the environment, and tells the harness; false if one does not work. */
static bool make_endpoints(void)
{
    static char names[256];
    char *rest = NULL;
    const char *variable = getenv(DEVICES_VARIABLE);
    strncpy(names, variable ? variable : "", sizeof names - 1);
    for (char *name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        const char *error = "there are too many";
        if (endpoint_count < MAX_ENDPOINTS) {
            error = endpoint_make(&endpoints[endpoint_count], name);
            if (!error)
                error = endpoint_test(&endpoints[endpoint_count]);
            endpoint_count += 1;
        }
        say("test %s %s", name, error ? error : "ok");
        send_line();
        if (error)
            return false;
    }
    return true;
}

/* The machine is built, and its CPUs do not run yet. QEMU's lock is held. */
static void machine_is_built(Notifier *notifier, void *data)
{
    (void)notifier, (void)data;
    if (!make_endpoints()) {
        say("unusable a device does not work");
        send_line();
        return;
    }
    /* QEMU's main thread takes the signals. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int error = pthread_create(&thread, NULL, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        say("unusable there is no thread");
        send_line();
    }
}

static bool connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return false;
    strcpy(address.sun_path, path);
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return connection >= 0 && !connect(connection, (struct sockaddr *)&address, sizeof address);
}

/* Runs before QEMU's main function. Other programs that happen to load this are left alone. */
__attribute__((constructor)) static void start(void)
{
    static Notifier built = {.notify = machine_is_built};
    const char *path = getenv(SOCKET_VARIABLE);
    if (!path || !connect_to(path))
        return;
    const char *missing = qemu_find_functions();
    if (missing) {
        say("unusable this QEMU does not export %s", missing);
        send_line();
        return;
    }
    say("test symbols ok");
    send_line();
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&endpoint_reports_changed, &attributes);
    qemu.qemu_add_machine_init_done_notifier(&built);
}
