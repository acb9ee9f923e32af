//! Errors of the lab: each variant says who is to blame, and its text names the cause and the cure.

/// What kept an experiment from running, or from ending as asked.
///
/// The command turns each variant into one exit code (`cli.md` of the project's
/// contract, repeated in `plimsoll --help`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Wrong usage or configuration: the caller asked for something that cannot be. Exit code 2.
    #[error("{cause}\n  cure: {cure}")]
    Usage {
        /// What is wrong.
        cause: String,
        /// What to ask for instead.
        cure: String,
    },
    /// This machine cannot run the experiment: a limit, a port in use, a missing right. Exit code 3.
    #[error("{cause}\n  cure: {cure}")]
    Machine {
        /// What the machine said, and which limit it is.
        cause: String,
        /// The command or setting that helps.
        cure: String,
    },
    /// The target cannot be reached, closes at once, or never answers. Exit code 4.
    #[error("{cause}\n  cure: {cure}")]
    Target {
        /// What the target did.
        cause: String,
        /// What to look at.
        cure: String,
    },
    /// A part of the result is missing (a worker died, a rank was not found). Exit code 5.
    #[error("{cause}\n  cure: {cure}")]
    Incomplete {
        /// What is missing.
        cause: String,
        /// How to get it.
        cure: String,
    },
    /// Somebody asked it to stop before there was anything to report. Exit code 130.
    #[error("{cause}\n  cure: {cure}")]
    Interrupted {
        /// What was not done yet.
        cause: String,
        /// How to do without it.
        cure: String,
    },
}

impl Error {
    /// An [`Error::Usage`].
    pub fn usage(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Usage { cause: cause.into(), cure: cure.into() }
    }

    /// An [`Error::Machine`].
    pub fn machine(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Machine { cause: cause.into(), cure: cure.into() }
    }

    /// An [`Error::Target`].
    pub fn target(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Target { cause: cause.into(), cure: cure.into() }
    }

    /// An [`Error::Incomplete`].
    pub fn incomplete(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Incomplete { cause: cause.into(), cure: cure.into() }
    }

    /// An [`Error::Interrupted`].
    pub fn interrupted(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Interrupted { cause: cause.into(), cure: cure.into() }
    }

    /// The process exit code for this error: 2, 3, 4, 5 or 130.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Machine { .. } => 3,
            Self::Target { .. } => 4,
            Self::Incomplete { .. } => 5,
            Self::Interrupted { .. } => 130,
        }
    }
}

impl From<plimsoll_kernel::Error> for Error {
    fn from(error: plimsoll_kernel::Error) -> Self {
        Self::machine(
            error.to_string(),
            "run as root, or without the experiment that needs this figure",
        )
    }
}

/// The result of an experiment.
pub type Result<T, E = Error> = std::result::Result<T, E>;
