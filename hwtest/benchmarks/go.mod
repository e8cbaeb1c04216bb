module github.com/sledvault/sledvault/hwtest/benchmarks

go 1.26.0

require (
	github.com/hashicorp/vault v1.21.4
	github.com/sledvault/sledvault v0.0.0
)

replace github.com/sledvault/sledvault => ../..
