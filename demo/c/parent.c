/* A parent of imgproxy: fetch every layer of an image, with plain sockets and the C library alone.
 *
 *     parent [--output DIR] IMAGE [OPTIONS OF IMGPROXY]
 *
 * It computes no digest, for which the C library has no function: imgproxy has verified each blob
 * before the last byte is sent. So a parent need only count the bytes, as is done here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SOURCE_LOST = 5 }; /* exit status of imgproxy */
enum { TRY_AGAIN = 75 };  /* exit status of this program: EX_TEMPFAIL of sysexits.h */
enum { AHEAD = 15 };      /* layers that are requested while the one before them is received */

extern char **environ;

static FILE *replies;  /* our half of the socket pair */
static bool retryable; /* another try may succeed */

struct reply {
    int status;
    long long length;
    char manifest_digest[256];
};

/* --- JSON: a parser that relies on valid input ----------------------------------------------- */

static const char *blank(const char *p) { return p + strspn(p, " \t\r\n"); }

/* Return the position after a value. */
static const char *skip(const char *p) {
    int depth = 0;
    do {
        p = blank(p);
        if (*p == '\0') return p;
        if (*p == '"') {
            for (p++; *p != '\0' && *p != '"'; p++)
                if (*p == '\\' && p[1] != '\0') p++;
            if (*p == '"') p++;
        } else if (strchr("{}[]:,", *p) != NULL) {
            depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
            p++;
        } else {
            p += strcspn(p, ",]} \t\r\n"); /* a number, true, false or null */
        }
    } while (depth > 0);
    return blank(p);
}

/* Return the first value, or name, in an object or an array; NULL if it is empty. */
static const char *first(const char *p) {
    if (p == NULL || (*p != '{' && *p != '[')) return NULL;
    p = blank(p + 1);
    return strchr("]}", *p) == NULL ? p : NULL; /* strchr finds the end of the text, too */
}

static const char *next(const char *p) {
    p = skip(p);
    return *p == ',' ? blank(p + 1) : NULL;
}

/* Return a member's value; NULL if there is none. */
static const char *member(const char *object, const char *name) {
    size_t length = strlen(name);
    for (const char *p = first(object); p != NULL; p = next(p)) {
        const char *colon = skip(p);
        if (*p != '"' || *colon != ':') return NULL;
        if (strncmp(p + 1, name, length) == 0 && p[1 + length] == '"') return blank(colon + 1);
        p = blank(colon + 1);
    }
    return NULL;
}

static char *put(char *to, unsigned c) { /* as UTF-8 */
    int more = (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
    *to++ = (char)("\0\xc0\xe0\xf0"[more] | c >> 6 * more);
    while (more-- > 0) *to++ = (char)(0x80 | (c >> 6 * more & 0x3f));
    return to;
}

/* Copy a member that is a string, cut to the size of the buffer; return the buffer. */
static const char *text(const char *object, const char *name, char *out, size_t size) {
    const char *p = member(object, name);
    char *to = out;
    if (p != NULL && *p++ != '"') p = NULL;
    for (; p != NULL && *p != '\0' && *p != '"' && to + 5 < out + size; p++) {
        unsigned c, low;
        if (*p != '\\') {
            *to++ = *p;
        } else if (sscanf(p, "\\u%4x", &c) == 1) {
            p += 5;
            if (c >> 10 == 0x36 && sscanf(p + 1, "\\u%4x", &low) == 1) { /* a surrogate pair */
                c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
                p += 6;
            }
            to = put(to, c);
        } else if (*++p != '\0') {
            const char *control = strchr("b\bf\fn\nr\rt\t", *p);
            *to++ = control == NULL ? *p : control[1];
        }
    }
    *to = '\0';
    return out;
}

/* --- imgproxy -------------------------------------------------------------------------------- */

static bool fail(const char *format, ...) {
    va_list facts;
    va_start(facts, format);
    fputs("failed: ", stderr);
    vfprintf(stderr, format, facts);
    fputc('\n', stderr);
    va_end(facts);
    return false;
}

/* Start imgproxy on one half of a socket pair; replies are read from the other. */
static bool start(char *image, char **options, int count, pid_t *child, FILE *diagnostics) {
    char *program = getenv("IMGPROXY"), *command[count + 4];
    int pair[2];
    if (program == NULL || *program == '\0') program = "imgproxy";
    command[0] = program;
    command[1] = "--sockfd=3";
    memcpy(command + 2, options, count * sizeof *options);
    command[count + 2] = image;
    command[count + 3] = NULL;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return fail("no sockets: %m");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fileno(diagnostics), 2);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 3);
    int error = posix_spawnp(child, program, &actions, NULL, command, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pair[1]); /* the child has a copy, and each side must notice the other's end */
    replies = fdopen(pair[0], "r");
    return error == 0 && replies != NULL ? true : fail("cannot start %s", program);
}

/* Send a request. If nobody receives it, there is no reply. */
static void request(const char *method, const char *path) {
    char line[8192];
    int size = snprintf(line, sizeof line, "%s %s HTTP/1.1\r\nHost: imgproxy\r\n\r\n", method, path);
    send(fileno(replies), line, size, MSG_NOSIGNAL);
}

/* Read the head of the next reply, but not its body. Replies come in the order of the requests. */
static bool answer(const char *path, struct reply *reply) {
    char line[8192];
    *reply = (struct reply){.length = -1};
    if (fgets(line, sizeof line, replies) == NULL ||
        sscanf(line, "HTTP/1.1 %d", &reply->status) != 1)
        return fail("%s: no reply", path);
    while (fgets(line, sizeof line, replies) != NULL && strcmp(line, "\r\n") != 0) {
        if (strncasecmp(line, "Content-Length:", 15) == 0) reply->length = atoll(line + 15);
        if (strncasecmp(line, "Manifest-Digest:", 16) == 0)
            sscanf(line + 16, "%255s", reply->manifest_digest);
    }
    return reply->length >= 0 ? true : fail("%s: no reply", path);
}

static bool short_body(const char *path, long long received, const struct reply *reply) {
    return fail("%s: short body, %lld of %lld bytes", path, received, reply->length);
}

/* Return the body of a reply as a string, to be freed by the caller; NULL if it is short. */
static char *receive(const char *path, const struct reply *reply) {
    char *body = calloc(1, reply->length + 1);
    size_t received = body == NULL ? 0 : fread(body, 1, reply->length, replies);
    if (body != NULL && (long long)received == reply->length) return body;
    short_body(path, received, reply);
    free(body);
    return NULL;
}

/* Report why a request was refused. */
static bool refused(const char *path, const struct reply *reply) {
    static char code[128], message[65536];
    char *body = receive(path, reply);
    if (body == NULL) return false;
    const char *error = first(member(body, "errors"));
    const char *again = member(member(error, "detail"), "retryable");
    retryable = again != NULL && *again == 't';
    text(error, "code", code, sizeof code);
    text(error, "message", message, sizeof message);
    free(body);
    return fail("%s: %d %s: %s", path, reply->status, code, message);
}

static char *blob_path(const char *layer, char *out, size_t size) {
    char digest[256];
    snprintf(out, size, "/blobs/%s", text(layer, "digest", digest, sizeof digest));
    return out;
}

/* Count the bytes of a blob that was requested, and save it if there is a directory. */
static bool fetch(const char *digest, const char *directory) {
    static char chunk[1 << 18];
    char path[512], file[4096] = "", part[4200] = "/dev/null";
    struct reply reply;
    bool good = true;
    snprintf(path, sizeof path, "/blobs/%s", digest);
    if (!answer(path, &reply)) return false;
    if (reply.status != 200) return refused(path, &reply);
    if (directory != NULL) {
        /* Safe as a file name: imgproxy refuses a malformed digest. */
        int size = snprintf(file, sizeof file, "%s/%s", directory, digest);
        if (size >= (int)sizeof file) return fail("the name of %s is too long", directory);
        file[size - strlen(strchr(digest, ':'))] = '-';
        snprintf(part, sizeof part, "%s.part", file);
    }
    FILE *output = fopen(part, "w");
    if (output == NULL) return fail("%s: %m", part);
    long long received = 0;
    size_t size, written = 0;
    do {
        long long left = reply.length - received;
        size = fread(chunk, 1, left < (long long)sizeof chunk ? (size_t)left : sizeof chunk, replies);
        received += size;
        written = fwrite(chunk, 1, size, output);
        if (isatty(2) && size > 0)
            fprintf(stderr, "\r\033[K%.19s %lld %%", digest, 100 * received / reply.length);
    } while (size > 0 && written == size);
    if (isatty(2)) fputs("\r\033[K", stderr);
    if (fclose(output) != 0 || written != size) good = fail("%s: %m", part);
    else if (received != reply.length) good = short_body(path, received, &reply);
    else if (directory != NULL && rename(part, file) != 0) good = fail("%s: %m", file);
    else printf("layer %s %lld bytes\n", digest, received);
    if (directory != NULL && !good) unlink(part);
    return good;
}

/* Print the parts of the image, and fetch its layers. */
static bool list(const char *directory) {
    struct reply reply;
    char digest[256], path[512];
    if (directory != NULL && mkdir(directory, 0777) != 0 && errno != EEXIST)
        return fail("%s: %m", directory);
    request("GET", "/manifest");
    if (!answer("/manifest", &reply)) return false;
    if (reply.status != 200) return refused("/manifest", &reply);
    char *manifest = receive("/manifest", &reply);
    if (manifest == NULL) return false;
    const char *config = member(manifest, "config"), *size = member(config, "size");
    printf("manifest %s\n", reply.manifest_digest);
    text(config, "digest", digest, sizeof digest);
    printf("config %s %lld bytes\n", digest, size == NULL ? 0 : atoll(size));
    bool good = true;
    const char *layer = first(member(manifest, "layers")), *ahead = layer;
    /* Requested ahead, the next layers come without a wait for the registry. */
    for (int waiting = 0; good && layer != NULL; layer = next(layer), waiting--) {
        for (; ahead != NULL && waiting <= AHEAD; ahead = next(ahead), waiting++)
            request("GET", blob_path(ahead, path, sizeof path));
        good = fetch(text(layer, "digest", digest, sizeof digest), directory);
    }
    free(manifest);
    if (good) request("POST", "/quit");
    return good && answer("/quit", &reply);
}

/* Close the socket, which ends imgproxy, too; report a failure of it, and return its status. */
static int end(pid_t child, FILE *diagnostics) {
    char line[4096], last[4096] = "";
    int status = 0;
    if (replies != NULL) fclose(replies);
    waitpid(child, &status, 0);
    if (status == 0) return 0;
    for (rewind(diagnostics); fgets(line, sizeof line, diagnostics) != NULL;) strcpy(last, line);
    last[strcspn(last, "\n")] = '\0';
    fprintf(stderr, WIFSIGNALED(status) ? "imgproxy: killed by signal %d" : "imgproxy: exit status %d",
            WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    fprintf(stderr, "%s%s\n", *last != '\0' ? ": " : "", last);
    return status;
}

int main(int count, char **arguments) {
    const char *directory = NULL;
    FILE *diagnostics = tmpfile(); /* the standard error of imgproxy */
    pid_t child;
    if (count > 2 && strcmp(arguments[1], "--output") == 0) {
        directory = arguments[2];
        count -= 2, arguments += 2;
    }
    if (count < 2 || *arguments[1] == '-') {
        fputs("usage: parent [--output DIR] IMAGE [OPTIONS OF IMGPROXY]\n", stderr);
        return 1;
    }
    if (diagnostics == NULL || fcntl(fileno(diagnostics), F_SETFD, FD_CLOEXEC) != 0)
        return fail("no file: %m"), 1;
    if (!start(arguments[1], arguments + 2, count - 2, &child, diagnostics)) return 1;
    bool good = list(directory);
    int status = end(child, diagnostics);
    if (retryable || (WIFEXITED(status) && WEXITSTATUS(status) == SOURCE_LOST)) return TRY_AGAIN;
    return good && status == 0 ? 0 : 1;
}
