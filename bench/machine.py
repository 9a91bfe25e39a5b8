"""What is measured on."""

import os
import platform


def machine():
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    with open("/proc/meminfo") as meminfo:
        memory = int(meminfo.readline().split()[1]) // (1 << 20)
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release()}"
