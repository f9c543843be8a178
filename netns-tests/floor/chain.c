// SPDX-License-Identifier: Apache-2.0
//
// Runs CNI plugins one after the other as a runtime does, each with what the one before answered in its prevResult:
//
//   chain RESULT PLUGIN CONFIG [PLUGIN CONFIG ...]
//
// CONFIG is a file with a JSON object. The environment goes to each plugin; the last answer goes to standard output, and
// for ADD to the file RESULT, from which DEL takes the prevResult of all plugins. The first plugin that fails ends the
// chain, with its answer.
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static void put(int file, const char *bytes, size_t length) {
	if (write(file, bytes, length) != (ssize_t)length)
		fail("write");
}

static ssize_t rest(int file, char *bytes, size_t room) {
	ssize_t length = pread(file, bytes, room, 0);
	if (length < 0 || (size_t)length == room)
		fail("read");
	while (length > 0 && (bytes[length - 1] == '\n' || bytes[length - 1] == ' '))
		length--;
	return length;
}

// Not pipes: nobody has to read while the plugin runs.
static int buffer(void) {
	int file = memfd_create("chain", MFD_CLOEXEC);
	if (file < 0)
		fail("memfd_create");
	return file;
}

int main(int count, char **arg) {
	static char config[1 << 20], answer[1 << 20];
	const char *verb = getenv("CNI_COMMAND");
	int is_del = verb && !strcmp(verb, "DEL");
	ssize_t answered = 0;
	if (count < 4)
		return 2;
	int result = open(arg[1], is_del ? O_RDONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (is_del && result >= 0)
		answered = rest(result, answer, sizeof answer);
	for (int i = 2; i + 1 < count; i += 2) {
		int file = open(arg[i + 1], O_RDONLY | O_CLOEXEC);
		if (file < 0)
			fail(arg[i + 1]);
		ssize_t length = rest(file, config, sizeof config);
		close(file);
		int in = buffer(), out = buffer();
		if (answered) {
			put(in, config, length - 1); // without the closing brace
			put(in, ",\"prevResult\":", 14);
			put(in, answer, answered);
			put(in, "}", 1);
		} else
			put(in, config, length);
		lseek(in, 0, SEEK_SET);
		posix_spawn_file_actions_t files;
		posix_spawn_file_actions_init(&files);
		posix_spawn_file_actions_adddup2(&files, in, 0);
		posix_spawn_file_actions_adddup2(&files, out, 1);
		pid_t plugin;
		int status;
		char *const words[] = {arg[i], NULL};
		if (posix_spawn(&plugin, arg[i], &files, NULL, words, environ))
			fail(arg[i]);
		if (waitpid(plugin, &status, 0) < 0)
			fail("waitpid");
		if (!is_del || status)
			answered = rest(out, answer, sizeof answer);
		posix_spawn_file_actions_destroy(&files);
		close(in);
		close(out);
		if (status) {
			put(1, answer, answered);
			fprintf(stderr, "%s: status %x\n", arg[i], status);
			return 1;
		}
	}
	if (!is_del) {
		put(1, answer, answered);
		put(result, answer, answered);
	}
	return 0;
}
