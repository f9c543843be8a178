// SPDX-License-Identifier: Apache-2.0
//
// The kernel's floor: what one ADD and one DEL of a pod cost when nothing is done but the system calls that the
// outcome needs. No configuration, no addresses to choose, no record of anything: the yardstick of the benchmark,
// compiled by it with `musl-gcc -O2 -static`.
//
//   floor add NETNS HOSTIF BRIDGE ADDRESS PREFIX GATEWAY   one veth with its master and its peer (eth0) in the netns, in
//                                                          one message; in the netns, in one send, lo and eth0 up,
//                                                          address and default route
//   floor del HOSTIF                                       delete the veth, and wait for the kernel
//   floor barrier                                          make and delete a veth of its own: the kernel ends such
//                                                          waits in their order, so that all before have ended too
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char batch[4096];
static size_t used;
static struct nlmsghdr *message;
static int messages;

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

static struct rtattr *nest(int type) {
	return attribute(type, NULL, 0);
}

static void unnest(struct rtattr *attr) {
	attr->rta_len = (char *)message + message->nlmsg_len - (char *)attr;
}

static void end(void) {
	used += NLMSG_ALIGN(message->nlmsg_len);
	messages++;
}

// Sends what was begun and ended, and waits for each acknowledgement.
static void commit(int sock, const char *what) {
	static char reply[16384];
	if (send(sock, batch, used, 0) < 0)
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

static int rtnetlink(void) {
	int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (sock < 0)
		fail("socket");
	return sock;
}

static void add(char **arg) {
	const char *host = arg[1];
	unsigned bridge = if_nametoindex(arg[2]);
	unsigned address = inet_addr(arg[3]), gateway = inet_addr(arg[5]);
	int netns = open(arg[0], O_RDONLY | O_CLOEXEC);
	if (netns < 0)
		fail(arg[0]);
	int sock = rtnetlink();
	struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &up, sizeof up);
	attribute(IFLA_IFNAME, host, strlen(host) + 1);
	attribute(IFLA_MASTER, &bridge, sizeof bridge);
	// One queue at each end: the kernel would make one per CPU and take them away again.
	unsigned one = 1;
	attribute(IFLA_NUM_TX_QUEUES, &one, sizeof one);
	attribute(IFLA_NUM_RX_QUEUES, &one, sizeof one);
	struct rtattr *info = nest(IFLA_LINKINFO | NLA_F_NESTED);
	attribute(IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = nest(IFLA_INFO_DATA | NLA_F_NESTED);
	struct rtattr *peer = nest(VETH_INFO_PEER);
	struct ifinfomsg peer_header = {0};
	memcpy((char *)message + message->nlmsg_len, &peer_header, sizeof peer_header);
	message->nlmsg_len += sizeof peer_header;
	attribute(IFLA_IFNAME, "eth0", 5);
	attribute(IFLA_NET_NS_FD, &netns, sizeof netns);
	attribute(IFLA_NUM_TX_QUEUES, &one, sizeof one);
	attribute(IFLA_NUM_RX_QUEUES, &one, sizeof one);
	unnest(peer);
	unnest(data);
	unnest(info);
	end();
	commit(sock, "create veth");

	if (setns(netns, CLONE_NEWNET) < 0)
		fail("setns");
	int inside = rtnetlink();
	int index = if_nametoindex("eth0");
	for (up.ifi_index = 1; up.ifi_index <= index; up.ifi_index += index - 1) {
		begin(RTM_NEWLINK, 0, &up, sizeof up);
		end();
	}
	struct ifaddrmsg ifa = {.ifa_family = AF_INET, .ifa_prefixlen = atoi(arg[4]), .ifa_index = index};
	begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &ifa, sizeof ifa);
	attribute(IFA_LOCAL, &address, sizeof address);
	attribute(IFA_ADDRESS, &address, sizeof address);
	end();
	struct rtmsg route = {.rtm_family = AF_INET,
			      .rtm_table = RT_TABLE_MAIN,
			      .rtm_protocol = RTPROT_BOOT,
			      .rtm_scope = RT_SCOPE_UNIVERSE,
			      .rtm_type = RTN_UNICAST};
	begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route, sizeof route);
	attribute(RTA_GATEWAY, &gateway, sizeof gateway);
	attribute(RTA_OIF, &index, sizeof index);
	end();
	commit(inside, "configure eth0");
}

static void del(const char *host) {
	struct ifinfomsg link = {0};
	begin(RTM_DELLINK, 0, &link, sizeof link);
	attribute(IFLA_IFNAME, host, strlen(host) + 1);
	end();
	commit(rtnetlink(), "delete veth");
}

static void barrier(void) {
	struct ifinfomsg link = {0};
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
	attribute(IFLA_IFNAME, "floor-barrier", 14);
	struct rtattr *info = nest(IFLA_LINKINFO | NLA_F_NESTED);
	attribute(IFLA_INFO_KIND, "veth", 4);
	unnest(info);
	end();
	commit(rtnetlink(), "create veth");
	del("floor-barrier");
}

int main(int count, char **arg) {
	if (count == 8 && !strcmp(arg[1], "add"))
		add(arg + 2);
	else if (count == 3 && !strcmp(arg[1], "del"))
		del(arg[2]);
	else if (count == 2 && !strcmp(arg[1], "barrier"))
		barrier();
	else
		return 2;
	return 0;
}
