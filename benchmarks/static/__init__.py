"""What the compilers say of every GPU kernel, without a GPU: registers, spills, shared memory, predicted times."""
