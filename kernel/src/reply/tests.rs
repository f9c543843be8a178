//! Replies as the kernel writes them, and replies that no kernel wrote.
