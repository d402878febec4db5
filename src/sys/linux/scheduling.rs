//! Linux: how the scheduler treats a thread (sched(7)).

/// Sets whether a wake-up of this thread may interrupt another thread (SCHED_OTHER), or waits until
/// a CPU is free or the other thread has used its time slice of a few milliseconds (SCHED_BATCH).
/// True if this has changed. A thread with yet another policy keeps it.
#[allow(unsafe_code)]
pub(crate) fn set_interrupts(on: bool) -> bool {
    let (from, to) = match on {
        true => (libc::SCHED_BATCH, libc::SCHED_OTHER),
        false => (libc::SCHED_OTHER, libc::SCHED_BATCH),
    };
    // The only parameter, the priority, is 0 for both policies.
    let priority: libc::c_int = 0;
    // musl's functions of these names always fail. A policy with a flag differs from both.
    // SAFETY: 0 is this thread. The second call reads the live priority, which is the first field
    // of the kernel's `struct sched_param`, and the only one.
    unsafe {
        libc::syscall(libc::SYS_sched_getscheduler, 0) == libc::c_long::from(from)
            && libc::syscall(libc::SYS_sched_setscheduler, 0, to, &raw const priority) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_up_its_interrupts_and_gets_them_back() {
        // A thread of its own, because the policy is the thread's.
        let changes = std::thread::spawn(|| [true, false, false, true, true].map(set_interrupts));
        assert_eq!(changes.join().unwrap(), [false, true, false, true, false]);
    }
}
