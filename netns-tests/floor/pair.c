// SPDX-License-Identifier: Apache-2.0
//
// What traffic between two network namespaces costs, both ends in one process on one CPU:
//
//   pair rr|stream|udp|connect MILLISECONDS CPU SERVER_NETNS CLIENT_NETNS SERVER_ADDRESS
//
// `rr` sends one byte there and back over TCP, `stream` as much as goes through one TCP connection, `udp` datagrams of 18
// bytes, `connect` opens connections one after the other, with a byte each way. Prints: how much arrived (round trips,
// bytes, datagrams, connections), the CPU's seconds that it took, those of the kernel thread that does what both ends leave
// to it among them, and the median of the round trips or connections in microseconds (0 for the others). Seconds of the
// CPU, because other programs may want it meanwhile: what one end leaves undone, the other pays for.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5201, DATAGRAM = 18, BATCH = 64, STEP = 50, STEPS = 400000 };

static int listener = -1, client = -1, server = -1, cpu;
static struct sockaddr_storage to;
static socklen_t to_length;
static const char *client_netns;
static _Atomic unsigned long done;
static _Atomic int stop, counted;
static unsigned *histogram; // in steps of 50 ns, up to 20 ms

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

static unsigned long now(clockid_t clock) {
	struct timespec time;
	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ul + time.tv_nsec;
}

// The nanoseconds that the CPU's ksoftirqd has run; 0 where the kernel does not say.
static unsigned long softirqd(void) {
	char path[300], wanted[32], name[32] = "";
	unsigned long ran = 0;
	snprintf(wanted, sizeof wanted, "ksoftirqd/%d\n", cpu);
	DIR *dir = opendir("/proc");
	for (struct dirent *entry; dir && (entry = readdir(dir)) && strcmp(name, wanted);) {
		snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
		FILE *file = fopen(path, "r");
		if (!file)
			continue;
		if (!fgets(name, sizeof name, file))
			*name = 0;
		fclose(file);
		snprintf(path, sizeof path, "/proc/%s/schedstat", entry->d_name);
	}
	if (dir)
		closedir(dir);
	FILE *file = strcmp(name, wanted) ? NULL : fopen(path, "r");
	if (file && fscanf(file, "%lu", &ran) != 1)
		ran = 0;
	if (file)
		fclose(file);
	return ran;
}

static void took(unsigned long began) {
	unsigned long step = (now(CLOCK_MONOTONIC) - began) / STEP;
	if (counted)
		histogram[step < STEPS ? step : STEPS - 1]++;
}

static int open_socket(int type) {
	int sock = socket(to.ss_family, type | SOCK_CLOEXEC, 0), yes = 1;
	if (sock < 0)
		fail("socket");
	if (type == SOCK_STREAM) {
		// The same for all, whatever the namespace's default is.
		setsockopt(sock, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
		setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	}
	struct timeval limit = {.tv_sec = 3};
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	return sock;
}

static void *rr_server(void *unused) {
	char byte;
	while (recv(server, &byte, 1, 0) == 1 && send(server, &byte, 1, MSG_NOSIGNAL) == 1)
		;
	return unused;
}

static void *rr_client(void *unused) {
	char byte = 1;
	while (!stop) {
		unsigned long began = now(CLOCK_MONOTONIC);
		if (send(client, &byte, 1, MSG_NOSIGNAL) != 1 || recv(client, &byte, 1, 0) != 1)
			fail("round trip");
		took(began);
		done++;
	}
	return unused;
}

static void *stream_server(void *unused) {
	static char block[256 << 10];
	for (ssize_t got; (got = recv(server, block, sizeof block, 0)) > 0;)
		done += got;
	return unused;
}

static void *stream_client(void *unused) {
	static char block[128 << 10];
	while (!stop)
		if (send(client, block, sizeof block, MSG_NOSIGNAL) < 0)
			fail("send");
	return unused;
}

static void *udp_server(void *unused) {
	static char block[BATCH][2048];
	struct mmsghdr messages[BATCH] = {0};
	struct iovec parts[BATCH];
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){block[i], sizeof block[i]};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (!stop) {
		int got = recvmmsg(server, messages, BATCH, MSG_WAITFORONE, NULL);
		if (got > 0)
			done += got;
	}
	return unused;
}

static void *udp_client(void *unused) {
	static char block[DATAGRAM];
	struct mmsghdr messages[BATCH] = {0};
	struct iovec part = {block, sizeof block};
	for (int i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &part;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (!stop)
		if (sendmmsg(client, messages, BATCH, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
			fail("send");
	return unused;
}

static void *connect_server(void *unused) {
	for (int sock; (sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0; close(sock)) {
		char byte;
		if (recv(sock, &byte, 1, 0) == 1 && send(sock, &byte, 1, MSG_NOSIGNAL) == 1)
			recv(sock, &byte, 1, 0);
	}
	return unused;
}

static void *connect_client(void *unused) {
	enter(client_netns);
	// No connection stays in TIME_WAIT: tens of thousands would keep all ports from the next run.
	struct linger at_once = {.l_onoff = 1};
	while (!stop) {
		unsigned long began = now(CLOCK_MONOTONIC);
		int sock = open_socket(SOCK_STREAM);
		char byte = 1;
		if (connect(sock, (struct sockaddr *)&to, to_length) < 0)
			fail("connect");
		if (send(sock, &byte, 1, MSG_NOSIGNAL) != 1 || recv(sock, &byte, 1, 0) != 1)
			fail("ask");
		setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
		close(sock);
		took(began);
		done++;
	}
	return unused;
}

int main(int count, char **arg) {
	if (count != 7)
		return 2;
	static const struct {
		const char *name;
		int type;
		void *(*server)(void *), *(*client)(void *);
	} kinds[] = {
		{"rr", SOCK_STREAM, rr_server, rr_client},
		{"stream", SOCK_STREAM, stream_server, stream_client},
		{"udp", SOCK_DGRAM, udp_server, udp_client},
		{"connect", SOCK_STREAM, connect_server, connect_client},
	};
	unsigned kind = 0;
	while (kind < 4 && strcmp(kinds[kind].name, arg[1]))
		kind++;
	struct sockaddr_in *four = (void *)&to;
	struct sockaddr_in6 *six = (void *)&to;
	if (inet_pton(AF_INET, arg[6], &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(PORT);
		to_length = sizeof *four;
	} else if (inet_pton(AF_INET6, arg[6], &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(PORT);
		to_length = sizeof *six;
	}
	if (kind == 4 || !to_length)
		return 2;
	client_netns = arg[5];
	cpu = atoi(arg[3]);
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof one, &one) < 0)
		fail("sched_setaffinity");
	histogram = calloc(STEPS, sizeof *histogram);

	int yes = 1, type = kinds[kind].type, much = 4 << 20;
	enter(arg[4]);
	int sock = open_socket(type);
	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (type == SOCK_DGRAM)
		setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &much, sizeof much);
	if (bind(sock, (struct sockaddr *)&to, to_length) < 0)
		fail("bind");
	if (type == SOCK_DGRAM)
		server = sock;
	else if (listen(listener = sock, 64) < 0)
		fail("listen");
	enter(client_netns);
	if (kinds[kind].client != connect_client) {
		client = open_socket(type);
		if (connect(client, (struct sockaddr *)&to, to_length) < 0)
			fail("connect");
		if (type == SOCK_STREAM && (server = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
			fail("accept");
		setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
	}
	pthread_t threads[2];
	if (pthread_create(&threads[0], NULL, kinds[kind].server, NULL) ||
	    pthread_create(&threads[1], NULL, kinds[kind].client, NULL))
		fail("start a thread");
	// The first tenth of a second finds neighbours and routes and opens the window.
	usleep(100000);
	unsigned long arrived = done, used = now(CLOCK_PROCESS_CPUTIME_ID), kernel = softirqd();
	counted = 1;
	usleep(atoi(arg[2]) * 1000);
	arrived = done - arrived;
	used = now(CLOCK_PROCESS_CPUTIME_ID) - used;
	kernel = softirqd() - kernel;
	stop = 1;
	unsigned long all = 0, below = 0, step = 0;
	for (int i = 0; i < STEPS; i++)
		all += histogram[i];
	while (step < STEPS && (below += histogram[step]) * 2 < all)
		step++;
	if (!arrived) {
		fprintf(stderr, "nothing arrived\n");
		return 1;
	}
	printf("%lu %f %f\n", arrived, (used + kernel) / 1e9, all ? (step + 0.5) * STEP / 1e3 : 0.0);
	fflush(stdout);
	// The threads' sockets end with the process.
	_exit(0);
}
