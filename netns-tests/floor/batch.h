// SPDX-License-Identifier: Apache-2.0
//
// Netlink requests, gathered and sent in one piece: what the kernel's floors have in common.
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char batch[8192];
static size_t used;
static struct nlmsghdr *message;
static int messages; // acknowledgements to wait for

static void fail(const char *what) {
	perror(what);
	exit(1);
}

static void begin(int type, int flags, const void *header, size_t length) {
	message = (struct nlmsghdr *)(batch + used);
	memset(message, 0, sizeof *message);
	message->nlmsg_type = type;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	memcpy(NLMSG_DATA(message), header, length);
	message->nlmsg_len = NLMSG_LENGTH(length);
}

static struct rtattr *attribute(int type, const void *data, size_t length) {
	struct rtattr *attr = (struct rtattr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));
	attr->rta_type = type;
	attr->rta_len = RTA_LENGTH(length);
	if (length)
		memcpy(RTA_DATA(attr), data, length);
	message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + RTA_ALIGN(attr->rta_len);
	return attr;
}

static inline void text(int type, const char *value) {
	attribute(type, value, strlen(value) + 1);
}

static struct rtattr *nest(int type) {
	return attribute(type | NLA_F_NESTED, NULL, 0);
}

static void unnest(struct rtattr *attr) {
	attr->rta_len = (char *)message + message->nlmsg_len - (char *)attr;
}

static void end(void) {
	used += NLMSG_ALIGN(message->nlmsg_len);
	messages += !!(message->nlmsg_flags & NLM_F_ACK);
}

// Sends what was begun and ended, and waits for each acknowledgement.
static void commit(int sock, const char *what) {
	static char reply[16384];
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	if (sendto(sock, batch, used, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0)
		fail(what);
	for (used = 0; messages > 0;) {
		int length = recv(sock, reply, sizeof reply, 0);
		if (length < 0)
			fail(what);
		for (struct nlmsghdr *h = (struct nlmsghdr *)reply; NLMSG_OK(h, length); h = NLMSG_NEXT(h, length)) {
			if (h->nlmsg_type != NLMSG_ERROR)
				continue;
			messages--;
			int error = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
			if (error) {
				fprintf(stderr, "%s: %s\n", what, strerror(-error));
				exit(1);
			}
		}
	}
}

static int netlink(int protocol) {
	int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (sock < 0)
		fail("socket");
	return sock;
}
