// SPDX-License-Identifier: Apache-2.0
//
// The kernel's floor of a pod with masquerade, two host ports and a rate each way: what floor.c does, and besides
// one nftables transaction that adds the pod's elements to the maps of a table that is there already (table.nft), and
// the queues that the reference's bandwidth plugin makes: a token bucket at the host's end of the veth, another on
// an ifb to which what the pod sends is redirected.
//
//   full add NETNS HOSTIF BRIDGE ADDRESS PREFIX GATEWAY NUMBER PORT   PORT and PORT + 1 of the node lead to 80 and 443;
//                                                                     NUMBER, not 0, is the pod's own
//   full del ADDRESS NUMBER PORT                                      the elements; then veth and ifb in one request,
//                                                                     and wait for the kernel
#include "batch.h"
#include "pod.h"
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>
#include <linux/if_ether.h>

static const char TABLE[] = "floor";
static const unsigned RATE = 125000000; // 1 Gbit/s in bytes
static const unsigned BURST = 1 << 20;  // bytes
static const unsigned short PODS_PORTS[] = {80, 443};

// Begins an nftables message. Only one that is the last of its transaction is acknowledged: the batch fails whole.
static void nft(int type, int flags) {
	struct nfgenmsg header = {.nfgen_family = NFPROTO_INET};
	begin(NFNL_SUBSYS_NFTABLES << 8 | type, flags, &header, sizeof header);
	message->nlmsg_flags &= ~NLM_F_ACK;
}

static void mark(int type) {
	struct nfgenmsg header = {.res_id = htons(NFNL_SUBSYS_NFTABLES)};
	begin(type, 0, &header, sizeof header);
	message->nlmsg_flags &= ~NLM_F_ACK;
	end();
}

static void value(int type, const void *data, size_t length) {
	struct rtattr *outer = nest(type);
	attribute(NFTA_DATA_VALUE, data, length);
	unnest(outer);
}

static void jump(const char *chain) {
	unsigned code = htonl((unsigned)NFT_JUMP);
	struct rtattr *outer = nest(NFTA_SET_ELEM_DATA), *verdict = nest(NFTA_DATA_VERDICT);
	attribute(NFTA_VERDICT_CODE, &code, sizeof code);
	text(NFTA_VERDICT_CHAIN, chain);
	unnest(verdict);
	unnest(outer);
}

// The keys and values of the table's maps: each part padded to four bytes.
struct port {
	unsigned char protocol, pad[3];
	unsigned short port, pad2;
};
struct target {
	unsigned address;
	unsigned short port, pad;
};
struct reply {
	unsigned char protocol, pad[3];
	unsigned short port, pad2;
	unsigned address;
};

// The pod's elements, to be added or taken away in one transaction.
static void elements(int type, unsigned address, unsigned short first) {
	int flags = type == NFT_MSG_NEWSETELEM ? NLM_F_CREATE | NLM_F_EXCL : 0;
	int adds = type == NFT_MSG_NEWSETELEM;
	static const char *const maps[] = {"masquerade4", "ports4", "snat4"};
	mark(NFNL_MSG_BATCH_BEGIN);
	for (int map = 0; map < 3; map++) {
		nft(type, flags);
		text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
		text(NFTA_SET_ELEM_LIST_SET, maps[map]);
		struct rtattr *list = nest(NFTA_SET_ELEM_LIST_ELEMENTS);
		for (int i = 0; i < (map == 0 ? 1 : 2); i++) {
			struct rtattr *element = nest(NFTA_LIST_ELEM);
			unsigned short port = htons(first + i);
			if (map == 0) {
				value(NFTA_SET_ELEM_KEY, &address, sizeof address);
				if (adds)
					jump("masq-1");
			} else if (map == 1) {
				struct port key = {.protocol = 6, .port = port};
				struct target target = {.address = address, .port = htons(PODS_PORTS[i])};
				value(NFTA_SET_ELEM_KEY, &key, sizeof key);
				if (adds)
					value(NFTA_SET_ELEM_DATA, &target, sizeof target);
			} else {
				struct reply key = {.protocol = 6, .port = htons(PODS_PORTS[i]), .address = address};
				value(NFTA_SET_ELEM_KEY, &key, sizeof key);
				if (adds)
					jump("snat-1");
			}
			unnest(element);
		}
		unnest(list);
		if (map == 2)
			message->nlmsg_flags |= NLM_F_ACK;
		end();
	}
	mark(NFNL_MSG_BATCH_END);
	commit(netlink(NETLINK_NETFILTER), adds ? "add elements" : "delete elements");
}

static void qdisc(int index, const char *kind, unsigned parent, unsigned handle) {
	struct tcmsg header = {.tcm_ifindex = index, .tcm_parent = parent, .tcm_handle = handle};
	begin(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &header, sizeof header);
	text(TCA_KIND, kind);
}

static void bucket(int index) {
	qdisc(index, "tbf", TC_H_ROOT, 0x10000);
	struct tc_tbf_qopt how = {.rate = {.rate = RATE, .linklayer = TC_LINKLAYER_ETHERNET}, .limit = 2 * BURST};
	struct rtattr *options = nest(TCA_OPTIONS);
	attribute(TCA_TBF_PARMS, &how, sizeof how);
	attribute(TCA_TBF_BURST, &BURST, sizeof BURST);
	unnest(options);
	end();
}

// Sends what comes in at one link out at another.
static void redirect(int from, int to) {
	qdisc(from, "ingress", TC_H_INGRESS, 0xffff0000);
	end();
	struct tcmsg header = {
		.tcm_ifindex = from, .tcm_parent = 0xffff0000, .tcm_info = TC_H_MAKE(1 << 16, htons(ETH_P_ALL))};
	begin(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &header, sizeof header);
	text(TCA_KIND, "u32");
	struct {
		struct tc_u32_sel sel;
		struct tc_u32_key key;
	} all = {.sel = {.flags = TC_U32_TERMINAL, .nkeys = 1}};
	struct tc_mirred mirred = {.action = TC_ACT_STOLEN, .eaction = TCA_EGRESS_REDIR, .ifindex = to};
	struct rtattr *options = nest(TCA_OPTIONS);
	attribute(TCA_U32_SEL, &all, sizeof all);
	struct rtattr *actions = nest(TCA_U32_ACT), *first = nest(1);
	text(TCA_ACT_KIND, "mirred");
	struct rtattr *parameters = nest(TCA_ACT_OPTIONS);
	attribute(TCA_MIRRED_PARMS, &mirred, sizeof mirred);
	unnest(parameters);
	unnest(first);
	unnest(actions);
	unnest(options);
	end();
}

// A pod reaches its own host port by a frame that goes back out of the port of the bridge that it came in by.
static void hairpin(const char *host) {
	struct ifinfomsg link = {0};
	char on = 1;
	begin(RTM_NEWLINK, 0, &link, sizeof link);
	text(IFLA_IFNAME, host);
	struct rtattr *info = nest(IFLA_LINKINFO);
	attribute(IFLA_INFO_SLAVE_KIND, "bridge", 6);
	struct rtattr *data = nest(IFLA_INFO_SLAVE_DATA);
	attribute(IFLA_BRPORT_MODE, &on, sizeof on);
	unnest(data);
	unnest(info);
	end();
}

static void add(char **arg) {
	unsigned number = atoi(arg[6]);
	char ifb[16];
	snprintf(ifb, sizeof ifb, "flb%u", number);
	int netns = open(arg[0], O_RDONLY | O_CLOEXEC);
	if (netns < 0)
		fail(arg[0]);
	int sock = netlink(NETLINK_ROUTE);
	veth(netns, arg[1], arg[2], number);
	hairpin(arg[1]);
	struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &up, sizeof up);
	text(IFLA_IFNAME, ifb);
	attribute(IFLA_GROUP, &number, sizeof number);
	unsigned one = 1;
	attribute(IFLA_NUM_TX_QUEUES, &one, sizeof one);
	attribute(IFLA_NUM_RX_QUEUES, &one, sizeof one);
	struct rtattr *info = nest(IFLA_LINKINFO);
	attribute(IFLA_INFO_KIND, "ifb", 3);
	unnest(info);
	end();
	commit(sock, "create veth and ifb");
	int host_index = if_nametoindex(arg[1]), ifb_index = if_nametoindex(ifb);
	bucket(host_index);
	bucket(ifb_index);
	redirect(host_index, ifb_index);
	commit(sock, "shape");
	elements(NFT_MSG_NEWSETELEM, inet_addr(arg[3]), atoi(arg[7]));
	inside(netns, arg[3], arg[4], arg[5]);
}

static void del(char **arg) {
	unsigned group = atoi(arg[1]);
	elements(NFT_MSG_DELSETELEM, inet_addr(arg[0]), atoi(arg[2]));
	struct ifinfomsg link = {0};
	begin(RTM_DELLINK, 0, &link, sizeof link);
	attribute(IFLA_GROUP, &group, sizeof group);
	end();
	commit(netlink(NETLINK_ROUTE), "delete veth and ifb");
}

int main(int count, char **arg) {
	if (count == 10 && !strcmp(arg[1], "add"))
		add(arg + 2);
	else if (count == 5 && !strcmp(arg[1], "del"))
		del(arg + 2);
	else
		return 2;
	return 0;
}
