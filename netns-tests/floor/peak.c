// SPDX-License-Identifier: Apache-2.0
//
// Runs a program and writes its peak resident memory in KiB to a file:  peak FILE PROGRAM [ARGUMENT ...]. The parent is small on purpose: the
// kernel counts what a child shares with it before exec.
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arg) {
	if (count < 3)
		return 2;
	pid_t child = fork();
	if (child == 0) {
		execv(arg[2], arg + 2);
		_exit(127);
	}
	int status = 1;
	struct rusage usage;
	if (child < 0 || wait4(child, &status, 0, &usage) < 0)
		return 1;
	FILE *peak = fopen(arg[1], "w");
	if (!peak || fprintf(peak, "%ld\n", usage.ru_maxrss) < 0 || fclose(peak))
		return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
