# Compiles Python files of an image with the image's own Python (PEP 552: bytecode that is checked by the hash of its
# source). Each file is compiled in a process of its own, forked from one that stays as it is: what `marshal` writes
# depends on which objects a process has, and so would depend on the files before.
#
# sources: one path a line. out/<line number>: the bytecode, or the archive with bytecode in it. Prints the cache tag.
import marshal
import os
import sys
from importlib import util

HOME = sys.argv[1]
JOBS = int(sys.argv[2])
UNCHECKED, CHECKED = 1, 3


def skipped(path):
    return any(part in ("test", "tests") for part in path.split("/")[:-1])


def bytecode(source, path, flags):
    code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    head = util.MAGIC_NUMBER + flags.to_bytes(4, "little") + util.source_hash(source)
    return head + marshal.dumps(code)


# In an archive source and bytecode change together, so nothing has to be checked when it is read.
def archive(path, out):
    import zipfile

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        names = set(old.namelist())
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info, data)
            name = info.filename
            if not name.endswith(".py") or name + "c" in names or skipped(name):
                continue
            try:
                compiled = bytecode(data, path + "/" + name, UNCHECKED)
            except (SyntaxError, ValueError):
                continue
            beside = zipfile.ZipInfo(name + "c", info.date_time)
            beside.external_attr = info.external_attr
            new.writestr(beside, compiled)


def work(path, out):
    if path.endswith(".zip"):
        archive(path, out)
        return
    with open(path, "rb") as file:
        source = file.read()
    try:
        compiled = bytecode(source, path, CHECKED)
    except (SyntaxError, ValueError):
        # Templates and files for another Python: nothing imports them here.
        return
    with open(out, "wb") as file:
        file.write(compiled)


def reap():
    if os.wait()[1] != 0:
        sys.exit("a file cannot be compiled")


def main():
    with open(HOME + "/sources", "rb") as file:
        sources = os.fsdecode(file.read()).split("\n")
    running = 0
    for number, path in enumerate(sources):
        if running == JOBS:
            reap()
            running -= 1
        if os.fork() == 0:
            status = 1
            try:
                work(path, HOME + "/out/" + str(number))
                status = 0
            except BaseException as error:
                sys.stderr.write("%s: %r\n" % (path, error))
            os._exit(status)
        running += 1
    for _ in range(running):
        reap()
    print(sys.implementation.cache_tag)


main()
