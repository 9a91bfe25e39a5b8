"""A psql that stays, for questions that are asked many times each second."""

import os
import subprocess

from measure import as_user

END = "end-of-answer"


class Session:
    def __init__(self, cluster):
        command = [os.path.join(cluster.bin, "psql"), *cluster.address(), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cluster.folder, **as_user(cluster.user)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, statements):
        """The lines of the answer; each statement is a transaction of its own."""
        self.process.stdin.write(f"{statements};\n\\echo {END}\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.strip() == END:
                return lines
            lines.append(line.rstrip("\n"))
        raise RuntimeError("\n".join([statements, *lines]))

    def number(self, statement):
        """A single number; 0 for none."""
        lines = self.ask(statement)
        return int(lines[0]) if lines and lines[0] else 0
