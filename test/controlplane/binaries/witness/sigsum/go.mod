// What witnessctl needs of sigsum.org/sigsum-go, which the module proxy does not hand out.
module sigsum.org/sigsum-go

go 1.26.0
