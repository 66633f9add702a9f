// Command peer is the other end of our ttrpc: a server, or a client that checks what it is answered.
//
//	peer server SOCKET    serves ttrpc's own streaming test service until it is killed
//	peer client SOCKET    makes every kind of call to such a service; exits 1 at the first wrong answer
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/ttrpc"
	"github.com/containerd/ttrpc/integration/streaming"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

const messages = 500

type service struct{}

func (service) Echo(_ context.Context, e *streaming.EchoPayload) (*streaming.EchoPayload, error) {
	if e.Msg == "fail" {
		return nil, status.Error(codes.AlreadyExists, "told to")
	}
	e.Seq++
	return e, nil
}

func (service) EchoStream(_ context.Context, stream streaming.TTRPCStreaming_EchoStreamServer) error {
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		e.Seq++
		if err := stream.Send(e); err != nil {
			return err
		}
	}
}

func (service) SumStream(_ context.Context, stream streaming.TTRPCStreaming_SumStreamServer) (*streaming.Sum, error) {
	var sum streaming.Sum
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return &sum, nil
		}
		if err != nil {
			return nil, err
		}
		sum.Sum += part.Add
		sum.Num++
	}
}

func (service) DivideStream(_ context.Context, sum *streaming.Sum, stream streaming.TTRPCStreaming_DivideStreamServer) error {
	for range sum.Num {
		if err := stream.Send(&streaming.Part{Add: sum.Sum / sum.Num}); err != nil {
			return err
		}
	}
	return nil
}

func (service) EchoNull(_ context.Context, stream streaming.TTRPCStreaming_EchoNullServer) (*emptypb.Empty, error) {
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return &emptypb.Empty{}, nil
		} else if err != nil {
			return nil, err
		}
	}
}

func (service) EchoNullStream(_ context.Context, stream streaming.TTRPCStreaming_EchoNullStreamServer) error {
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(&emptypb.Empty{}); err != nil {
			return err
		}
	}
}

func (service) EmptyPayloadStream(_ context.Context, _ *emptypb.Empty, stream streaming.TTRPCStreaming_EmptyPayloadStreamServer) error {
	for seq := range uint32(2) {
		if err := stream.Send(&streaming.EchoPayload{Seq: seq + 1}); err != nil {
			return err
		}
	}
	return nil
}

func serve(path string) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	streaming.RegisterTTRPCStreamingService(server, service{})
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return server.Serve(context.Background(), listener)
}

func check(ctx context.Context, client streaming.TTRPCStreamingClient) error {
	for seq := range uint32(messages) {
		answer, err := client.Echo(ctx, &streaming.EchoPayload{Seq: seq, Msg: "x"})
		if err != nil || answer.Seq != seq+1 || answer.Msg != "x" {
			return fmt.Errorf("Echo: %v, %w", answer, err)
		}
	}
	if _, err := client.Echo(ctx, &streaming.EchoPayload{Msg: "fail"}); status.Code(err) != codes.AlreadyExists {
		return fmt.Errorf("Echo that fails: %w", err)
	}
	echo, err := client.EchoStream(ctx)
	if err != nil {
		return fmt.Errorf("EchoStream: %w", err)
	}
	for seq := range uint32(messages) {
		if err := echo.Send(&streaming.EchoPayload{Seq: seq}); err != nil {
			return fmt.Errorf("EchoStream: send %d: %w", seq, err)
		}
		answer, err := echo.Recv()
		if err != nil || answer.Seq != seq+1 {
			return fmt.Errorf("EchoStream: %v, %w", answer, err)
		}
	}
	if err := echo.CloseSend(); err != nil {
		return fmt.Errorf("EchoStream: close: %w", err)
	}
	if answer, err := echo.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("EchoStream after its end: %v, %w", answer, err)
	}
	sum, err := client.SumStream(ctx)
	if err != nil {
		return fmt.Errorf("SumStream: %w", err)
	}
	for part := range int32(messages) {
		if err := sum.Send(&streaming.Part{Add: part}); err != nil {
			return fmt.Errorf("SumStream: send: %w", err)
		}
	}
	total, err := sum.CloseAndRecv()
	if err != nil || total.Num != messages || total.Sum != messages*(messages-1)/2 {
		return fmt.Errorf("SumStream: %v, %w", total, err)
	}
	divide, err := client.DivideStream(ctx, &streaming.Sum{Sum: 20, Num: 10})
	if err != nil {
		return fmt.Errorf("DivideStream: %w", err)
	}
	for n := 0; ; n++ {
		part, err := divide.Recv()
		if errors.Is(err, io.EOF) && n == 10 {
			break
		}
		if err != nil || part.Add != 2 {
			return fmt.Errorf("DivideStream, part %d: %v, %w", n, part, err)
		}
	}
	null, err := client.EchoNull(ctx)
	if err != nil {
		return fmt.Errorf("EchoNull: %w", err)
	}
	for seq := range uint32(3) {
		if err := null.Send(&streaming.EchoPayload{Seq: seq, Msg: "x"}); err != nil {
			return fmt.Errorf("EchoNull: send: %w", err)
		}
	}
	if _, err := null.CloseAndRecv(); err != nil {
		return fmt.Errorf("EchoNull: %w", err)
	}
	nulls, err := client.EchoNullStream(ctx)
	if err != nil {
		return fmt.Errorf("EchoNullStream: %w", err)
	}
	for seq := range uint32(3) {
		if err := nulls.Send(&streaming.EchoPayload{Seq: seq}); err != nil {
			return fmt.Errorf("EchoNullStream: send: %w", err)
		}
		if _, err := nulls.Recv(); err != nil {
			return fmt.Errorf("EchoNullStream: %w", err)
		}
	}
	if err := nulls.CloseSend(); err != nil {
		return fmt.Errorf("EchoNullStream: close: %w", err)
	}
	if _, err := nulls.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("EchoNullStream after its end: %w", err)
	}
	empty, err := client.EmptyPayloadStream(ctx, &emptypb.Empty{})
	if err != nil {
		return fmt.Errorf("EmptyPayloadStream: %w", err)
	}
	for seq := range uint32(2) {
		if answer, err := empty.Recv(); err != nil || answer.Seq != seq+1 {
			return fmt.Errorf("EmptyPayloadStream: %v, %w", answer, err)
		}
	}
	if _, err := empty.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("EmptyPayloadStream after its end: %w", err)
	}
	return nil
}

func run(role, path string) error {
	if role == "server" {
		return serve(path)
	}
	connection, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(connection)
	defer client.Close()
	return check(context.Background(), streaming.NewTTRPCStreamingClient(client))
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: peer server|client SOCKET")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
