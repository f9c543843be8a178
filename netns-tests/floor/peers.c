// SPDX-License-Identifier: Apache-2.0
//
// The ways to other nodes as agents program them that make a socket for each operation and wait for its answer:
//
//   peers COUNT
//
// in this network namespace, on a VXLAN device of its own: for each peer a permanent neighbour, a forwarding entry and a
// route, in that order, all routes with the same metric. Prints the seconds that it took.
#include "batch.h"

#include <linux/neighbour.h>
#include <net/if.h>
#include <time.h>

static void once(const char *what) {
	int sock = netlink(NETLINK_ROUTE);
	end();
	commit(sock, what);
	close(sock);
}

static double now(void) {
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **arg) {
	if (count != 2)
		return 2;
	if (system("ip link add floor.1 type vxlan id 4000 dstport 4000 local 127.0.0.1 nolearning noudpcsum &&"
		   "ip address add 172.20.0.1/32 dev floor.1 && ip link set floor.1 up"))
		return 1;
	unsigned device = if_nametoindex("floor.1"), peers = atoi(arg[1]);
	double began = now();
	for (unsigned i = 0; i < peers; i++) {
		unsigned subnet = htonl(0xac000000 + (20 << 16) + 256 * (i + 1)), machine = htonl(0xc6120000 + i + 1);
		unsigned char mac[6] = {2, 0, 0, i >> 16, i >> 8, i};
		struct ndmsg neighbour = {.ndm_family = AF_INET, .ndm_ifindex = device, .ndm_state = NUD_PERMANENT};
		begin(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &neighbour, sizeof neighbour);
		attribute(NDA_DST, &subnet, 4);
		attribute(NDA_LLADDR, mac, 6);
		once("neighbour");
		neighbour.ndm_family = AF_BRIDGE;
		neighbour.ndm_flags = NTF_SELF;
		begin(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &neighbour, sizeof neighbour);
		attribute(NDA_DST, &machine, 4);
		attribute(NDA_LLADDR, mac, 6);
		once("forwarding entry");
		struct rtmsg route = {.rtm_family = AF_INET, .rtm_dst_len = 24, .rtm_table = RT_TABLE_MAIN,
				      .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST, .rtm_flags = RTNH_F_ONLINK};
		begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &route, sizeof route);
		attribute(RTA_DST, &subnet, 4);
		attribute(RTA_GATEWAY, &subnet, 4);
		attribute(RTA_OIF, &device, 4);
		once("route");
	}
	printf("%f\n", now() - began);
	return system("ip link del floor.1");
}
