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
#include "batch.h"
#include "pod.h"

static void add(char **arg) {
	int netns = open(arg[0], O_RDONLY | O_CLOEXEC);
	if (netns < 0)
		fail(arg[0]);
	veth(netns, arg[1], arg[2], 0);
	commit(netlink(NETLINK_ROUTE), "create veth");
	inside(netns, arg[3], arg[4], arg[5]);
}

static void del(const char *host) {
	struct ifinfomsg link = {0};
	begin(RTM_DELLINK, 0, &link, sizeof link);
	attribute(IFLA_IFNAME, host, strlen(host) + 1);
	end();
	commit(netlink(NETLINK_ROUTE), "delete veth");
}

static void barrier(void) {
	struct ifinfomsg link = {0};
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
	attribute(IFLA_IFNAME, "floor-barrier", 14);
	struct rtattr *info = nest(IFLA_LINKINFO);
	attribute(IFLA_INFO_KIND, "veth", 4);
	unnest(info);
	end();
	commit(netlink(NETLINK_ROUTE), "create veth");
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
