// SPDX-License-Identifier: Apache-2.0
//
// What traffic costs between two network namespaces, both ends on one CPU:
//
//   meter stream|connect MILLISECONDS CPU SERVER_NETNS CLIENT_NETNS LISTEN_ON CONNECT_TO CONNECT_PORT
//
// LISTEN_ON is the server's port on all its addresses. `stream` sends as much as goes through one TCP connection;
// `connect` opens connections one after the other, with a byte each way. Prints: how much (bytes, or connections), the
// seconds that it took, the CPU's seconds of both ends and of the kernel thread that does what they leave to it, and the
// address that the server saw. Seconds of the CPU, because other programs may want it meanwhile.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char block[128 << 10];

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static void enter(const char *netns) {
	int file = open(netns, O_RDONLY | O_CLOEXEC);
	if (file < 0 || setns(file, CLONE_NEWNET) < 0)
		fail(netns);
	close(file);
}

static double now(void) {
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

// The seconds that the CPU's ksoftirqd has run; 0 where the kernel does not say.
static double softirqd(int cpu) {
	static char path[300];
	if (!*path) {
		char wanted[32], name[32] = "";
		snprintf(wanted, sizeof wanted, "ksoftirqd/%d\n", cpu);
		DIR *dir = opendir("/proc");
		for (struct dirent *entry; dir && (entry = readdir(dir)) && strcmp(name, wanted);) {
			snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
			FILE *file = fopen(path, "r");
			if (file && !fgets(name, sizeof name, file))
				*name = 0;
			if (file)
				fclose(file);
			snprintf(path, sizeof path, "/proc/%s/schedstat", entry->d_name);
		}
		if (dir)
			closedir(dir);
		if (strcmp(name, wanted))
			strcpy(path, "/dev/null");
	}
	unsigned long long ran = 0;
	FILE *file = fopen(path, "r");
	if (file && fscanf(file, "%llu", &ran) != 1)
		ran = 0;
	if (file)
		fclose(file);
	return ran / 1e9;
}

static double used(int who) {
	struct rusage usage;
	getrusage(who, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

// Serves until it is killed; the address of the first client goes to the pipe.
static void serve(int stream, int listener, int seen) {
	for (;;) {
		struct sockaddr_in peer;
		socklen_t length = sizeof peer;
		int client = accept(listener, (struct sockaddr *)&peer, &length);
		if (client < 0)
			fail("accept");
		if (seen >= 0) {
			dprintf(seen, "%s", inet_ntoa(peer.sin_addr));
			close(seen);
			seen = -1;
		}
		if (stream)
			while (read(client, block, sizeof block) > 0)
				;
		else if (read(client, block, 1) == 1 && write(client, block, 1) != 1)
			fail("answer");
		close(client);
	}
}

static int dial(struct sockaddr_in *to) {
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = {.tv_sec = 5};
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (sock < 0 || connect(sock, (struct sockaddr *)to, sizeof *to) < 0)
		fail("connect");
	return sock;
}

int main(int count, char **arg) {
	if (count != 9)
		return 2;
	int stream = !strcmp(arg[1], "stream"), cpu = atoi(arg[3]), seen[2];
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	// Where the CPU is not ours to choose, any will do.
	sched_setaffinity(0, sizeof one, &one);
	if (pipe2(seen, O_CLOEXEC) < 0)
		fail("pipe");

	enter(arg[4]);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(arg[6]))};
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 64) < 0)
		fail("listen");
	pid_t server = fork();
	if (server == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0)
		serve(stream, listener, seen[1]);
	close(seen[1]);

	enter(arg[5]);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(arg[8]))};
	to.sin_addr.s_addr = inet_addr(arg[7]);
	// No connection stays in TIME_WAIT and keeps a port from the next run.
	struct linger at_once = {.l_onoff = 1};
	int sock = stream ? dial(&to) : -1;
	double kernel = softirqd(cpu), mine = used(RUSAGE_SELF), began = now(), until = began + atoi(arg[2]) / 1e3, ended;
	unsigned long long done = 0;
	while ((ended = now()) < until) {
		if (stream) {
			ssize_t sent = write(sock, block, sizeof block);
			if (sent < 0)
				fail("send");
			done += sent;
			continue;
		}
		int link = dial(&to);
		char byte = 1;
		if (write(link, &byte, 1) != 1 || read(link, &byte, 1) != 1)
			fail("ask");
		setsockopt(link, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		close(link);
		done++;
	}
	mine = used(RUSAGE_SELF) - mine;
	kernel = softirqd(cpu) - kernel;
	if (stream) {
		setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		close(sock);
	}
	char address[64] = "";
	if (read(seen[0], address, sizeof address - 1) <= 0)
		fail("the server saw nobody");
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	printf("%llu %f %f %s\n", done, ended - began, mine + kernel + used(RUSAGE_CHILDREN), address);
	return 0;
}
