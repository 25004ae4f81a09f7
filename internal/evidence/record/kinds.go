package record

// The kinds of records there are. Each is permanent, as is what its fields mean.
const (
	KindGenesis            Kind = "genesis"
	KindBoot               Kind = "boot"
	KindStop               Kind = "stop"
	KindGap                Kind = "gap"
	KindClose              Kind = "close"
	KindDecision           Kind = "decision"
	KindAdmitted           Kind = "admitted"
	KindRemediation        Kind = "remediation"
	KindSnapshot           Kind = "snapshot"
	KindState              Kind = "state"
	KindBeat               Kind = "beat"
	KindExceptionRequested Kind = "exception.requested"
	KindExceptionGranted   Kind = "exception.granted"
	KindExceptionUsed      Kind = "exception.used"
	KindExceptionRevoked   Kind = "exception.revoked"
	KindExceptionExpired   Kind = "exception.expired"
	KindConfigChanged      Kind = "config.changed"
	KindKeyCreated         Kind = "key.created"
	KindKeyDestroyed       Kind = "key.destroyed"
	KindKeyUsed            Kind = "key.used"
	KindClockDeclared      Kind = "clock.declared"
)

// Kinds returns all of them.
func Kinds() []Kind {
	return []Kind{
		KindGenesis, KindBoot, KindStop, KindGap, KindClose,
		KindDecision, KindAdmitted, KindRemediation,
		KindSnapshot, KindState, KindBeat,
		KindExceptionRequested, KindExceptionGranted, KindExceptionUsed, KindExceptionRevoked, KindExceptionExpired,
		KindConfigChanged, KindKeyCreated, KindKeyDestroyed, KindKeyUsed, KindClockDeclared,
	}
}

// newBody returns an empty body of kind, or nil where there is none.
func newBody(kind Kind) Body {
	switch kind {
	case KindGenesis:
		return &Genesis{}
	case KindBoot:
		return &Boot{}
	case KindStop:
		return &Stop{}
	case KindGap:
		return &Gap{}
	case KindClose:
		return &Close{}
	case KindDecision:
		return &Decision{}
	case KindAdmitted:
		return &Admitted{}
	case KindRemediation:
		return &Remediation{}
	case KindSnapshot:
		return &Snapshot{}
	case KindState:
		return &State{}
	case KindBeat:
		return &Beat{}
	case KindExceptionRequested:
		return &ExceptionRequested{}
	case KindExceptionGranted:
		return &ExceptionGranted{}
	case KindExceptionUsed:
		return &ExceptionUsed{}
	case KindExceptionRevoked:
		return &ExceptionRevoked{}
	case KindExceptionExpired:
		return &ExceptionExpired{}
	case KindConfigChanged:
		return &ConfigChanged{}
	case KindKeyCreated:
		return &KeyCreated{}
	case KindKeyDestroyed:
		return &KeyDestroyed{}
	case KindKeyUsed:
		return &KeyUsed{}
	case KindClockDeclared:
		return &ClockDeclared{}
	}
	return nil
}
