// SPDX-License-Identifier: Apache-2.0
//
// A pod's link, in two pieces: one message on the node, one send in the pod.
#pragma once
#include "batch.h"
#include <fcntl.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>

// The veth with its master, and its peer (eth0) in the netns.
static void veth(int netns, const char *host, const char *bridge_name, unsigned group) {
	unsigned bridge = if_nametoindex(bridge_name);
	struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &up, sizeof up);
	text(IFLA_IFNAME, host);
	attribute(IFLA_MASTER, &bridge, sizeof bridge);
	if (group)
		attribute(IFLA_GROUP, &group, sizeof group);
	// One queue at each end: the kernel would make one per CPU and take them away again.
	unsigned one = 1;
	attribute(IFLA_NUM_TX_QUEUES, &one, sizeof one);
	attribute(IFLA_NUM_RX_QUEUES, &one, sizeof one);
	struct rtattr *info = nest(IFLA_LINKINFO);
	attribute(IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = nest(IFLA_INFO_DATA);
	struct rtattr *peer = attribute(VETH_INFO_PEER, NULL, 0);
	struct ifinfomsg peer_header = {0};
	memcpy((char *)message + message->nlmsg_len, &peer_header, sizeof peer_header);
	message->nlmsg_len += sizeof peer_header;
	text(IFLA_IFNAME, "eth0");
	attribute(IFLA_NET_NS_FD, &netns, sizeof netns);
	attribute(IFLA_NUM_TX_QUEUES, &one, sizeof one);
	attribute(IFLA_NUM_RX_QUEUES, &one, sizeof one);
	unnest(peer);
	unnest(data);
	unnest(info);
	end();
}

// In the netns: lo and eth0 up, address and default route. The caller stays in there.
static void inside(int netns, const char *address_text, const char *prefix, const char *gateway_text) {
	unsigned address = inet_addr(address_text), gateway = inet_addr(gateway_text);
	if (setns(netns, CLONE_NEWNET) < 0)
		fail("setns");
	int sock = netlink(NETLINK_ROUTE);
	int index = if_nametoindex("eth0");
	struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	for (up.ifi_index = 1; up.ifi_index <= index; up.ifi_index += index - 1) {
		begin(RTM_NEWLINK, 0, &up, sizeof up);
		end();
	}
	struct ifaddrmsg ifa = {.ifa_family = AF_INET, .ifa_prefixlen = atoi(prefix), .ifa_index = index};
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
	commit(sock, "configure eth0");
}
